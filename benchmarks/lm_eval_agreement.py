r"""Do evaluate.py and lm-eval come to the same verdicts, on the same model, prompts and questions, both greedy?

    python benchmarks/lm_eval_agreement.py --model MODEL --data gsm8k_test.jsonl --limit 50 --max-new-tokens 200

The data have `problem` and a number as `answer` in each line, as GSM8K's. The model is loaded as training loads it and
exported as a checkpoint is, so that this also shows that an exported folder loads there. lm-eval gets the questions
through a task file that is written here, with the prompt of this project and the two ways in which its own GSM8K task
finds an answer; it needs no network. With --prompt-file or --examples, as a run was trained with them, lm-eval gets the
prompts as they are written here. lm-eval: pip install lm-eval, or --lm-eval PYTHON for that of another environment.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import rollout  # noqa: E402
from harness.prompting import contents_of  # noqa: E402
from rollout import INSTRUCTION  # noqa: E402
from verify import extract_answer  # noqa: E402

TASK = "gsm8k_here"
# Metric and filters are those of lm-eval's own task gsm8k.
TASK_FILE = r"""
task: {task}
dataset_path: json
dataset_kwargs:
  data_files: {{"test": {data}}}
test_split: test
output_type: generate_until
doc_to_text: {text}
doc_to_target: "{{{{answer}}}}"
num_fewshot: 0
generation_kwargs: {{"until": [], "do_sample": false, "max_gen_toks": {limit}}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true, ignore_punctuation: false,
     regexes_to_ignore: [",", "\\$", "(?s).*#### ", "\\.$"]}}
filter_list:
  - name: strict-match
    filter:
      - {{function: regex, regex_pattern: "#### (\\-?[0-9\\.\\,]+)"}}
      - {{function: take_first}}
  - name: flexible-extract
    filter:
      - {{function: regex, group_select: -1, regex_pattern: "(-?[$0-9.,]{{2,}})|(-?[0-9]+)"}}
      - {{function: take_first}}
"""


@dataclass(frozen=True)
class Graded:
    """The completion of one question and its verdict."""

    text: str
    right: bool
    found: str | None  # the answer in it


@dataclass(frozen=True)
class Asked:
    """What both sides get: the same folder of a model, the same questions, the same limit."""

    folder: Path  # with model/ and questions.jsonl
    limit: int  # tokens of a completion
    turn: str  # what lm-eval asks: a template over the fields of questions.jsonl
    by_turns: bool  # lm-eval puts the chat template around it
    flags: list[str]  # of evaluate.py: how prompts look


def task_file(asked: Asked) -> str:
    """The YAML of lm-eval's task: what is JSON in it is YAML too."""
    data = json.dumps(str(asked.folder / "questions.jsonl"))
    return TASK_FILE.format(task=TASK, data=data, text=json.dumps(asked.turn), limit=asked.limit)


def by_evaluate(asked: Asked) -> list[Graded]:
    """The verdicts of evaluate.py, in the order of the file."""
    folder = asked.folder
    result = folder / "here.json"
    run([
        sys.executable, str(ROOT / "evaluate.py"), "--model", str(folder / "model"), "--data",
        str(folder / "questions.jsonl"), "--temperature", "0", "--max-new-tokens", str(asked.limit), *asked.flags,
        "--out", str(result),
    ])  # fmt: skip
    (named,) = json.loads(result.read_text(encoding="utf-8")).values()
    texts = [row["texts"][0] for row in named["rows"]]
    return [
        Graded(text, row["rewards"][0] >= 1, extract_answer(text))
        for text, row in zip(texts, named["rows"], strict=True)
    ]


def by_lm_eval(python: str, asked: Asked) -> tuple[dict[str, list[Graded]], list[str]]:
    """The verdicts of lm-eval by the name of its filter, and its prompts, in the order of the file."""
    folder = asked.folder
    (folder / "tasks").mkdir()
    (folder / "tasks" / f"{TASK}.yaml").write_text(task_file(asked), encoding="utf-8")
    run([
        python, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={folder / 'model'},dtype=float32",
        "--tasks", TASK, "--include_path", str(folder / "tasks"), "--batch_size", "10", "--device", "cpu",
        "--log_samples", "--output_path", str(folder / "there"), *(["--apply_chat_template"] if asked.by_turns else []),
    ])  # fmt: skip
    (log,) = (folder / "there").rglob(f"samples_{TASK}_*.jsonl")
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    found: dict[str, list[Graded]] = {}
    prompts: dict[int, str] = {}
    for line in sorted(lines, key=lambda line: line["doc_id"]):
        prompts[line["doc_id"]] = first_text(line["arguments"])
        graded = Graded(line["resps"][0][0], line["exact_match"] == 1, line["filtered_resps"][0])
        found.setdefault(line["filter"], []).append(graded)
    return found, [prompts[number] for number in sorted(prompts)]


def first_text(arguments: Any) -> str:
    """The prompt in lm-eval's record of a request: a list of lists, or a dictionary of dictionaries."""
    while not isinstance(arguments, str):
        arguments = next(iter(arguments.values())) if isinstance(arguments, dict) else arguments[0]
    return arguments


def run(command: list[str]) -> None:
    """Run a command without the network. Ends the program where it fails, with the end of what it said."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command[:4])} ... failed:\n{(done.stdout + done.stderr)[-2_000:]}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hub name, local directory, or .gguf file")
    parser.add_argument("--data", required=True, help="JSONL of questions")
    parser.add_argument("--limit", type=int, default=50, help="only the first questions")
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--lm-eval", default=sys.executable, help="the Python that has lm-eval")
    parser.add_argument("--prompt-file", default="", help="as of dagrpo.py")
    parser.add_argument("--examples", default="", help="as of dagrpo.py")
    options = parser.parse_args(arguments)
    style = contents_of(options.prompt_file, options.examples).style()
    flags = ["--prompt-file", options.prompt_file] if options.prompt_file else []
    flags += ["--examples", options.examples] if options.examples else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, tokenizer = rollout.load(options.model, "cpu")
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        lines = Path(options.data).read_text(encoding="utf-8").splitlines()[: options.limit]
        questions = [json.loads(line) for line in lines]
        rendered = [rollout.render_prompt(tokenizer, question["problem"], style=style) for question in questions]
        kept = [
            {"problem": question["problem"], "answer": question["answer"], "prompt": prompt}
            for question, prompt in zip(questions, rendered, strict=True)
        ]
        (folder / "questions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in kept), encoding="utf-8")
        has_template = tokenizer.chat_template is not None
        usual = "{{problem}}" + (f"\n\n{INSTRUCTION}" if has_template else "\n")
        asked = Asked(
            folder, options.max_new_tokens, "{{prompt}}" if flags else usual, has_template and not flags, flags
        )
        here = by_evaluate(asked)
        there, prompts = by_lm_eval(options.lm_eval, asked)
    print(f"{len(questions)} questions, greedy, at most {options.max_new_tokens} tokens")
    print(f"prompts that are the same       {sum(a == b for a, b in zip(rendered, prompts, strict=True))}")
    same = sum(a.text.strip() == b.text.strip() for a, b in zip(here, there["flexible-extract"], strict=True))
    print(f"completions that are the same   {same}")
    print(f"\n{'':34} {'right':>6} {'same verdict as evaluate.py':>29}")
    print(f"{'evaluate.py':34} {sum(one.right for one in here):>6}")
    for filter_name, graded in there.items():
        agreed = sum(one.right == other.right for one, other in zip(here, graded, strict=True))
        print(f"{'lm-eval, ' + filter_name:34} {sum(one.right for one in graded):>6} {agreed:>29}")
    print("\nWhere evaluate.py and lm-eval's flexible-extract differ:")
    for question, one, other in zip(questions, here, there["flexible-extract"], strict=True):
        if one.right != other.right:
            print(f"  gold {question['answer']}: {found_by(one)} here, {found_by(other)} there; the text ends")
            print(f"    {one.text.strip()[-120:]!r}")


def found_by(graded: Graded) -> str:
    return f"{graded.found!r} is {'right' if graded.right else 'wrong'}"


if __name__ == "__main__":
    main()
