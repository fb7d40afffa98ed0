"""The inputs of trial.py: a row of the trial's table each, with what must be said.

The trial of an earlier version (258 bad inputs and faults) describes many of its inputs, and only counts the others.
`described` are those that can be made again from the description. `table` are of the same kind, out of the tables in
tests/test_trial.py, in the place of those that it only counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from trial_files import tables

# The kinds of the trial's table, and how many inputs it had of each.
KINDS = {
    "flags": 67,
    "data": 84,
    "rewards": 29,
    "models": 24,
    "not finite": 8,
    "places": 14,
    "evaluate.py": 20,
    "signals": 12,
}
BRIEF = f"{tables.TINY} --max-new-tokens 6 --out new"
OWN = f"dagrpo.py --model m {BRIEF} --data "
GOOD = OWN + "good.jsonl "
LONGER = OWN.replace("--max-new-tokens 6", "--max-new-tokens 20")
MEASURED = OWN.replace("--hold-out 1 ", "")
BY_REWARD = GOOD + "--anchors none --reward "
RUNAWAY = (
    "dagrpo.py --questions 4 --group-size 4 --steps 6 --warmup 0 --eval-every 1 --eval-samples 1 --max-new-tokens 40 "
    "--out new --eval-data brief.jsonl "
)


@dataclass(frozen=True)
class Row:
    """One input."""

    kind: str  # of KINDS
    command: str  # behind `python`; of an event only its name
    said: str  # what must stand in what is printed
    code: int
    described: bool = True  # else out of a table of tests/test_trial.py
    event: str = ""  # of trial.EVENTS: more than a command that is run
    or_taken: bool = False  # a step of training, without a word, is right as well


def of_table(kind: str, form: str, code: int, rows: Iterable[tuple[str, str]], *, described: bool) -> list[Row]:
    """Rows of a table; `{}` in the form is what the table has of the command."""
    return [Row(kind, form.format(given), said, code, described) for given, said in rows]


def picked(table: Iterable[tuple[str, ...]], names: Iterable[str]) -> list[tuple[str, str]]:
    """(what is given, what must be said) of the rows of a table with these names, in their order."""
    by_name = {row[0]: (row[0], row[-1]) for row in table}
    return [by_name[name] for name in names]


def named(kind: str, form: str, code: int, table: Iterable[tuple[str, ...]], *names: str) -> list[Row]:
    return of_table(kind, form, code, picked(table, names), described=True)


def format_row(name: str, said: str) -> Row:
    """Good questions in another format, which a program may refuse and say, or take."""
    return Row("data", OWN + name, said, 1, or_taken=True)


# ---------------------------------------------------------------------------------------------------------------------
# What the trial describes
# ---------------------------------------------------------------------------------------------------------------------

FLAGS = [
    *named(
        "flags",
        "dagrpo.py {}",
        2,
        tables.FLAGS,
        "--lr 1e-5",
        "--beta 0.1",
        "--lora",
        "--num-generations 8",
        "--max-length 512",
        "--version",
        "--temp 0.7",
        "--learnin-rate 1",
        "--learning_rate 1",
        "--Steps 3",
        "–steps 3",
        "good.jsonl",
        "--wombat",
        "--steps",
        "--device mps",
        "--device foo",
        "--device CPU",
        "--seed 99999999999999999999999",
        "--seed -1",
        "--method sft --group-size 4",
        "--batch-size 8",
        "--model m --data good.jsonl --eval-data good.jsonl --hold-out 3",
        "--data good.jsonl",
        "--updates 99",
    ),
    Row("flags", "dagrpo.py --resume", "--resume: a value is missing behind it.", 2),
    Row("flags", "dagrpo.py --steps abc --steps 1", "--steps: it is given twice", 2),
    Row("flags", GOOD + "--epochs 3", "step 1/1", 0),
    Row("flags", GOOD + "--lora 2", "step 1/1", 0),
    Row("flags", GOOD + "--no-eval-at-start", "step 1/1", 0),
    Row("flags", GOOD.replace("--hold-out 1", "--hold-out 1000"), "only 2 questions are held out", 0),
    Row("flags", "dagrpo.py --config run/config.json", "--config: there is no such flag", 2),
    Row("flags", "dagrpo.py --check", "--check: there is no such flag", 2),
    Row("flags", "dagrpo.py --help", "questions per step: P", 0),
]

DATA = [
    *named(
        "data",
        OWN + "{}",
        1,
        tables.DATA,
        "utf16.jsonl",
        "latin.jsonl",
        "level.jsonl",
        "level-object.jsonl",
        "surrogate.jsonl",
        "deep.jsonl",
        "wide.jsonl",
        "no-answer.jsonl",
    ),
    *named("data", OWN + "{}", 1, tables.NO_FILE, ".", "run", "/dev/null", "some/set"),
    *named(
        "data",
        "dagrpo.py --model m --out new {}",
        1,
        tables.TOO_LITTLE,
        "--data few.jsonl",
        "--data copies.jsonl",
        "--data good.jsonl --eval-data unreadable.jsonl",
    ),
    Row("data", OWN + "{folder}/run", "run: it ", 1),  # its whole path
    Row("data", OWN + "./run", "run: it ", 1),
    Row("data", OWN + "unsolved.jsonl", "training without anchors", 0),
    Row("data", OWN + "bom.jsonl", "step 1/1", 0),
    Row("data", OWN + "crlf.jsonl", "step 1/1", 0),
    Row("data", OWN + "cr.jsonl", "step 1/1", 0),
    Row("data", OWN + "blank-lines.jsonl", "step 1/1", 0),
    Row("data", OWN + "separators.jsonl", "step 1/1", 0),  # U+2028
    Row("data", OWN + "nul.jsonl", "step 1/1", 0),
    Row("data", OWN + "numbers.jsonl", "step 1/1", 0),
    Row("data", OWN + "letters.jsonl", "step 1/1", 0),  # 27 choices
    Row("data", OWN + "long-prompts.jsonl", "1 questions left out: with a completion they exceed the model's 256", 0),
    Row("data", OWN + "unread.jsonl", "unread.jsonl:2: left out, the answer '\\\\frac{1' cannot be read", 0),
    Row("data", LONGER + "wrong.jsonl", "Anchor left out, wrong.jsonl:", 0),  # a solution that is wrong
    Row("data", LONGER + "wordy.jsonl", "Anchor left out, wordy.jsonl:", 0),  # one that is too long
    Row("data", MEASURED + "both.jsonl --eval-data few.jsonl", "4 training questions are held-out ones too", 0),
    Row("data", MEASURED + "good.jsonl --eval-data half.jsonl", "5 questions left out: their gold answer cannot", 0),
    # one and the same GSM8K
    format_row("gsm8k.jsonl", "Is it `question` there? Rename that."),
    format_row("gsm8k-renamed.jsonl", "####"),
    format_row("question-answer.jsonl", "Is it `question` there? Rename that."),
    format_row("prompt-answer.jsonl", "Is it `prompt` there? Rename that."),
    format_row("prompt-as-chat.jsonl", "Is it `prompt` there? Rename that."),
    format_row("messages.jsonl", "Is it `messages` there? Rename that."),
    format_row("verl.jsonl", "Is it `prompt` there? Rename that."),
    format_row("truth.jsonl", "Is it `ground_truth` there? Rename that."),
    format_row("answer-key.jsonl", "Is it `answerKey` there?"),
    format_row("rows.json", "the file is one JSON array"),
    format_row("rows.csv", "it is a CSV file"),
    format_row("rows.parquet", "it is a Parquet file"),
    format_row("rows.jsonl.gz", "the file is packed (gzip). Unpack it first"),
    format_row("saved", "--data saved: it "),  # of Dataset.save_to_disk
    format_row("saved-dict", "--data saved-dict: it "),
    # others, as files
    format_row("arc.jsonl", "the line has question, choices, answerKey. Is it `"),
    format_row("mmlu-pro.jsonl", "Is it `question` there? Rename that."),
    format_row("svamp.jsonl", "the field `problem` is missing; the line has ID, Body, Question"),
    Row("data", OWN + "amc.jsonl", "training without anchors", 0),
    # of the Hub, by a stand-in for its package
    Row("data", OWN + "zoo/animals", "it has several configurations; name one of zoo/animals/algebra", 1),
    Row("data", OWN + "zoo/animals:zoology", "it has several configurations; name one of zoo/animals/algebra", 1),
    Row("data", OWN + "zoo/animals/zoology", "step 1/1", 0),
    Row("data", OWN + "zoo/animals/zoology:validation", 'Unknown split "validation"', 1),
    Row("data", OWN + "zoo/animals/zoology:train[:10]", "step 1/1", 0),
    format_row("zoo/arc", "the field `answer` is missing; the line has"),
    format_row("zoo/math", "the field `answer` is missing"),
    Row("data", OWN + "zoo/numbers", "step 1/1", 0),
    # without an answer, which no function of --reward needs
    Row("data", OWN + "no-answer.jsonl --anchors none --reward mine.py:good", "the field `answer` is missing", 1),
]

REWARDS = [
    *named("rewards", BY_REWARD + "{}", 1, tables.REWARDS, "notes.txt:f", "helper.py:f"),
    *named(
        "rewards",
        BY_REWARD + "{}",
        1,
        tables.REWARDS_THAT_FAIL,
        "mine.py:few",
        "mine.py:more",
        "mine.py:nan",
        "mine.py:raises",
    ),
    Row("rewards", BY_REWARD + "mine.py:good", "step 1/1", 0),  # the length: no per cent
    Row("rewards", BY_REWARD + "more.py:astronomic", "it gave 1e+30", 1),
    Row("rewards", BY_REWARD + "more.py:below", "reward -", 0),
    Row("rewards", BY_REWARD.replace("--anchors none", "--right-at 1") + "more.py:below", "and 1 is right", 0),
    Row("rewards", BY_REWARD + "more.py:good mine.py:good", "step 1/1", 0),
    Row("rewards", BY_REWARD + "with_dataclass.py:f", "step 1/1", 0),
    Row("rewards", BY_REWARD + "with_pool.py:f", "step 1/1", 0),
    Row(
        "rewards",
        "raises in step 3",
        "Saved after step 2; go on with: python dagrpo.py --resume new",
        1,
        event="late_reward",
    ),
]

MODELS = [
    *named("models", "dagrpo.py --model {} --out new --data good.jsonl", 1, tables.NO_MODEL, "run", "page.gguf"),
    *named(
        "models",
        "dagrpo.py --model {} --out new --data good.jsonl",
        1,
        tables.EARLY,
        "nothing",
        "no-tokenizer",
        "noise",
        "cut-weights",
        "empty-weights",
        "t5",
    ),
    *named(
        "models",
        "dagrpo.py --model {} --out new --data good.jsonl",
        1,
        tables.LATE,
        "other-shapes",
        "small-vocabulary",
        "nan",
        "layer-missing",
    ),
    *named("models", "evaluate.py --model {} --data good.jsonl", 1, tables.NO_MODEL, "run"),
    *named("models", "evaluate.py --model {} --data good.jsonl", 1, tables.LATE, "nan"),
    Row("models", "dagrpo.py --model endless-texts --out new --data good.jsonl", "(EOS)", 1),
    Row("models", GOOD.replace("--model m", "--model mamba"), "Completions cannot be sampled from it here", 1),
]

NOT_FINITE = [
    Row("not finite", RUNAWAY + "--learning-rate 10", "what the model knows will be gone after one", 0),
    Row("not finite", RUNAWAY + "--learning-rate 1e9", "their product must be at most 1", 2),
    Row("not finite", RUNAWAY + "--learning-rate 1e30", "their product must be at most 1", 2),
    Row("not finite", RUNAWAY + "--learning-rate 1e38", "--learning-rate 1e+38: it must be", 2),
    Row("not finite", RUNAWAY + "--weight-decay 1e9", "their product must be at most 1", 2),
    Row("not finite", RUNAWAY + "--temperature 1e-40", "--temperature 1e-40: it must be at least 1e-06", 2),
]

PLACES = [
    *named(
        "places",
        "dagrpo.py --model m --data good.jsonl --out {}",
        2,
        tables.OUT,
        "m",
        "m/sub",
        "proj",
        "run",
    ),
    Row("places", "dagrpo.py --model m --data good.jsonl --out begun", "there is a run in this folder already", 2),
    Row("places", "two at once, default names", "step 1/1", 0, event="two_by_default"),
    Row("places", "two at once, one --out", "this folder", 2, event="two_in_one"),
    Row("places", "a full disk at the first save", "It was the first one.", 1, event="full_at_first"),
    Row(
        "places",
        "a full disk at the second save",
        "The one before it is whole: go on with --resume",
        1,
        event="full_at_second",
    ),
    Row(
        "places",
        "a read-only file system",
        "nothing can be written there (Read-only file system)",
        2,
        event="read_only",
    ),
]

EVALUATE = [
    *named(
        "evaluate.py",
        "evaluate.py {}",
        2,
        tables.EVALUATE_FLAGS,
        *(
            tables.EVALUATE + rest
            for rest in (
                "--max 30",
                "--sampels 3",
                "--top-p 0",
                "--top-p 2",
                "--temperature nan",
                "--out /proc/x.json",
                "--out run",
                "--out good.jsonl",
                "--out notes.txt",
            )
        ),
    ),
    Row("evaluate.py", "evaluate.py --model m --data a/test.jsonl b/test.jsonl --max-new-tokens 6", "b/test", 0),
    Row("evaluate.py", "evaluate.py --model runs/smoke/model --data held_out.jsonl --samples 4", "no such f", 1),
    Row("evaluate.py", "evaluate.py --model m --data good.jsonl --max-new-tokens 6 --out nowhere/x.json", "good", 0),
]

SIGNALS = [
    Row("signals", "Ctrl-C while PyTorch is imported", "dagrpo.py: interrupted.", 130, event="int_importing"),
    Row("signals", "Ctrl-C in the evaluation at step 0", "nothing to go on from", 130, event="int_evaluating"),
    Row("signals", "Ctrl-C in a rollout", "Stopped; saved after step 3. Go on with", 130, event="int_rollout"),
    Row("signals", "Ctrl-C in an update", "Stopped; saved after step 3. Go on with", 130, event="int_update"),
    Row("signals", "Ctrl-C in the second save", "Stopped; saved after step", 130, event="int_saving"),
    Row("signals", "SIGTERM in a rollout", "Stopped; saved after step 3. Go on with", 143, event="term_rollout"),
    Row("signals", "SIGHUP in a rollout", "Stopped; saved after step 3. Go on with", 129, event="hup_rollout"),
    Row("signals", "SIGKILL in a rollout", "Resumed after step", 137, event="kill_rollout"),
    Row("signals", "SIGKILL in the second save", "Resumed after step 1", 137, event="kill_saving"),
    Row("signals", "SIGKILL in two saves, with --resume between", "Resumed after step", 137, event="kill_saving_twice"),
    Row("signals", "dagrpo.py ... | head -2", "dagrpo.py: interrupted.", 141, event="closed_pipe"),
    Row("signals", "Ctrl-C in evaluate.py", "the same command goes on from there", 130, event="int_evaluate"),
]

DESCRIBED = FLAGS + DATA + REWARDS + MODELS + NOT_FINITE + PLACES + EVALUATE + SIGNALS

# What fills up a kind, from the tables: in turn, so that all parts of them come.
FURTHER: dict[str, list[Row]] = {
    "flags": of_table("flags", "dagrpo.py {}", 2, tables.FLAGS, described=False),
    "data": of_table(
        "data", OWN + "{}", 1, [(row[0], row[-1]) for row in tables.DATA + tables.NO_FILE], described=False
    ),
    "rewards": of_table("rewards", BY_REWARD + "{}", 1, tables.REWARDS + tables.REWARDS_THAT_FAIL, described=False),
    "models": of_table(
        "models", "dagrpo.py --model {} --out new --data good.jsonl", 1,
        [(row[0], row[-1]) for row in tables.EARLY + tables.LATE + tables.NO_MODEL], described=False,
    ),
    "not finite": [
        Row("not finite", RUNAWAY + "--eval-temperature 1e-40", "it must be at least 1e-06", 2, described=False),
        Row("not finite", RUNAWAY + "--learning-rate 50", "3 steps in a row had a gradient that is not", 1, False),
    ],
    "places": of_table("places", "dagrpo.py --model m --data good.jsonl --out {}", 2, tables.OUT, described=False),
    "evaluate.py": of_table("evaluate.py", "evaluate.py {}", 2, tables.EVALUATE_FLAGS, described=False),
    "signals": [],
}  # fmt: skip


def all_rows() -> list[Row]:
    """The described rows of each kind, and as many of the tables as the trial had beside them."""
    rows = []
    for kind, count in KINDS.items():
        described = [row for row in DESCRIBED if row.kind == kind]
        known = {row.command for row in described}
        others = [row for row in FURTHER[kind] if row.command not in known]
        missing = max(0, count - len(described))
        spread = [others[n * len(others) // missing] for n in range(missing)] if others else []
        rows += described + spread
    return rows
