"""The files that the inputs of trial.py name, beside those of tests/test_trial.py."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["HF_HUB_OFFLINE"] = "1"  # as for all commands; it is read when the Hub's package is imported

import test_trial as tables  # noqa: E402
from conftest import character_tokenizer, random_model  # noqa: E402
from transformers import MambaConfig, MambaForCausalLM  # noqa: E402

SUMS = [{"problem": f"{n}+{n}?", "answer": str(2 * n)} for n in range(20, 30)]
SOLVED = [{**question, "solution": f"\\boxed{{{question['answer']}}}"} for question in SUMS]
TEXTS = [(f"Tom has {n} and gets {n} more.", f"{n}+{n} = <<{n}+{n}={2 * n}>>{2 * n}", str(2 * n)) for n in range(9)]


def lines(records: Iterable[object]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


FILES: dict[str, bytes] = {
    "brief.jsonl": lines(SUMS[:2]),
    "bom.jsonl": b"\xef\xbb\xbf" + lines(SOLVED),
    "crlf.jsonl": lines(SOLVED).replace(b"\n", b"\r\n"),
    "cr.jsonl": lines(SOLVED).replace(b"\n", b"\r"),
    "blank-lines.jsonl": b"\n \n" + lines(SOLVED).replace(b"\n", b"\n\n"),
    "separators.jsonl": lines(SOLVED).replace(b"?", "\u2028?".encode()),
    "nul.jsonl": lines({**question, "problem": question["problem"] + "\0"} for question in SOLVED),
    "numbers.jsonl": lines({**question, "answer": int(question["answer"])} for question in SOLVED),
    "letters.jsonl": lines({**q, "choices": [str(n) for n in range(27)], "answer": "["} for q in SUMS),
    "long-prompts.jsonl": lines([*SOLVED, {**SOLVED[0], "problem": "x" * 300}]),
    "unread.jsonl": lines([SOLVED[0], {"problem": "?", "answer": "\\frac{1"}, *SOLVED[1:]]),
    "wrong.jsonl": lines({**question, "solution": "\\boxed{1}"} for question in SOLVED),
    "wordy.jsonl": lines({**question, "solution": "so " * 9 + question["solution"]} for question in SOLVED),
    "both.jsonl": lines(SOLVED + tables.GOOD[:4]),
    "half.jsonl": lines(SUMS[:5] + [{"problem": f"{n}?", "answer": "\\frac{1"} for n in range(5)]),
    "gsm8k.jsonl": lines({"question": q, "answer": f"{text}\n#### {answer}"} for q, text, answer in TEXTS),
    "gsm8k-renamed.jsonl": lines({"problem": q, "answer": f"{text}\n#### {answer}"} for q, text, answer in TEXTS),
    "question-answer.jsonl": lines({"question": q, "answer": answer} for q, _, answer in TEXTS),
    "prompt-answer.jsonl": lines({"prompt": q, "answer": answer} for q, _, answer in TEXTS),
    "messages.jsonl": lines(
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": text}], "answer": answer}
        for q, text, answer in TEXTS
    ),
    "verl.jsonl": lines(
        {"data_source": "gsm8k", "prompt": [{"role": "user", "content": q}], "reward_model": {"ground_truth": answer}}
        for q, _, answer in TEXTS
    ),
    "prompt-as-chat.jsonl": lines(
        {"prompt": [{"role": "user", "content": q}], "answer": answer} for q, _, answer in TEXTS
    ),
    "truth.jsonl": lines({"problem": q, "ground_truth": answer} for q, _, answer in TEXTS),
    "rows.json": json.dumps(SOLVED).encode(),
    "rows.csv": b"problem,answer\n" + b"".join(f"{q['problem']},{q['answer']}\n".encode() for q in SUMS),
    "rows.jsonl.gz": gzip.compress(lines(SOLVED)),
    "answer-key.jsonl": lines({"problem": q, "answerKey": answer} for q, _, answer in TEXTS),
    "arc.jsonl": lines(
        {"question": q, "choices": {"text": ["1", answer], "label": ["A", "B"]}, "answerKey": "B"}
        for q, _, answer in TEXTS
    ),
    "mmlu-pro.jsonl": lines(
        {"question": q, "options": ["x", answer], "answer": "B", "answer_index": 1} for q, _, answer in TEXTS
    ),
    "svamp.jsonl": lines({"ID": "1", "Body": q, "Question": "How many?", "Answer": answer} for q, _, answer in TEXTS),
    "amc.jsonl": lines({"id": n, "problem": q, "answer": float(answer)} for n, (q, _, answer) in enumerate(TEXTS)),
    "a/test.jsonl": lines(SUMS[:3]),
    "b/test.jsonl": lines(SUMS[3:6]),
    "more.py": b"""
from my_helper import LARGE

def astronomic(texts, questions):
    return [LARGE] * len(texts)

def below(texts, questions):
    return [-5.0 - len(text) for text in texts]

def good(texts, questions):
    return [float(n % 2) for n, _ in enumerate(texts)]

calls = 0

def raises_late(texts, questions):
    global calls
    calls += 1
    if calls > 3:  # an evaluation, and two steps
        raise ValueError("the third step")
    return good(texts, questions)
""",
    "my_helper.py": b"LARGE = 1e30\n",
    "with_dataclass.py": b"""
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Given:
    text: str

def f(texts, questions):
    return [float(len(Given(text).text)) for text in texts]
""",
    "with_pool.py": b"""
import multiprocessing

def one(text):
    return float(len(text))

def f(texts, questions):
    with multiprocessing.Pool(2) as pool:
        return pool.map(one, texts)
""",
    "hub/datasets.py": b"""
import re

SUMS = [{"question": f"{n} and {n}?", "answer": str(2 * n)} for n in range(15)]
ARC = [{"question": "Which?", "choices": {"text": ["1", "2"], "label": ["A", "B"]}, "answerKey": "B"}] * 9
MATH = [{"problem": f"{n}+1", "solution": f"so \\\\boxed{{{n + 1}}}", "level": "Level 1"} for n in range(9)]
SETS = {
    "zoo/animals": {"algebra": SUMS, "zoology": [{**row, "question": "How many " + row["question"]} for row in SUMS]},
    "zoo/arc": {"default": ARC},
    "zoo/math": {"default": MATH},
    "zoo/numbers": {"main": [{**row, "answer": int(row["answer"])} for row in SUMS]},
}

def get_dataset_config_names(name):
    if name not in SETS:
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub (LocalEntryNotFoundError)")
    return list(SETS[name])

def load_dataset(name, configuration, split):
    part = re.fullmatch(r"train(?:\\[:(\\d+)\\])?", split)
    if part is None:
        raise ValueError(f"Unknown split \\"{split}\\". Should be one of ['train'].")
    return SETS[name][configuration][: int(part[1] or 99)]
""",
}


def fill(folder: Path) -> None:
    """Put into an empty folder all that rows and tables name."""
    tables.fill(folder)
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "begun").mkdir()  # what the first evaluation of a run leaves that is killed in it
    for name in ("config.json", "metrics.jsonl"):
        (folder / "begun" / name).write_text("{}\n")
    write_parquet(folder / "rows.parquet")
    saved_sets(folder)
    config = MambaConfig(vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=1, eos_token_id=1)
    MambaForCausalLM(config).save_pretrained(folder / "mamba")
    character_tokenizer().save_pretrained(folder / "mamba")
    random_model().save_pretrained(folder / "endless-texts")
    tokenizer = character_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder / "endless-texts")
    for name in ("config.json", "generation_config.json"):
        path = folder / "endless-texts" / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": None}))


def saved_sets(folder: Path) -> None:
    """What `save_to_disk` of a Dataset and of a DatasetDict leave, as far as a name on a command line can tell."""
    (folder / "saved").mkdir()
    (folder / "saved" / "data-00000-of-00001.arrow").write_bytes(b"\xff\xff\xff\xff")
    (folder / "saved" / "dataset_info.json").write_text("{}")
    shutil.copytree(folder / "saved", folder / "saved-dict" / "train")
    (folder / "saved-dict" / "dataset_dict.json").write_text('{"splits": ["train"]}')


def write_parquet(path: Path) -> None:
    """Ten questions; without the package for it a file that looks like one."""
    if importlib.util.find_spec("pyarrow") is None:
        path.write_bytes(b"PAR1" + b"\0" * 50)
        return
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(SOLVED), path)
