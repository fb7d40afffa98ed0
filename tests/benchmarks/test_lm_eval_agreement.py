"""The comparison with lm-eval: what it is asked, and how its log is read. A script stands in the place of lm-eval."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import lm_eval_agreement as agreement
import pytest
import yaml

from harness.config import EXAMPLE

# Gives the first question the completion of evaluate.py, and the others one of its own; its filters find `found`.
STAND_IN = """#!{python}
import json, pathlib, sys
import yaml
given = dict(zip(sys.argv, sys.argv[1:]))
assert sys.argv[1:4] == ["-m", "lm_eval", "run"] and given["--tasks"] == "gsm8k_here"
task = yaml.safe_load((pathlib.Path(given["--include_path"]) / "gsm8k_here.yaml").read_text())
questions = [json.loads(line) for line in open(task["dataset_kwargs"]["data_files"]["test"])]
(result,) = json.loads((pathlib.Path(given["--include_path"]).parent / "here.json").read_text()).values()
out = pathlib.Path(given["--output_path"]) / "model"
out.mkdir(parents=True)
lines = []
for number, question in enumerate(questions):
    prompt = task["doc_to_text"]
    for name, value in question.items():
        prompt = prompt.replace("{{{{" + name + "}}}}", value)
    text = result["rows"][number]["texts"][0] if number == 0 else "It is 7"
    for name in ("strict-match", "flexible-extract"):
        right = number == 2 and name == "flexible-extract"
        lines.append({{"doc_id": number, "arguments": {{"gen_args_0": {{"arg_0": prompt}}}}, "resps": [[text]],
                      "filter": name, "filtered_resps": ["7"], "exact_match": float(right)}})
lines.reverse()
(out / "samples_gsm8k_here_1.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
"""


@pytest.fixture
def lm_eval(tmp_path) -> str:
    """A program in the place of a Python that has lm-eval."""
    file = tmp_path / "lm-eval"
    file.write_text(STAND_IN.format(python=sys.executable))
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


def test_both_sides_are_counted_and_their_differences_are_printed(lm_eval, tmp_path, capsys):
    """The third question is made one that the embedded model cannot get right, so that only lm-eval takes it so."""
    lines = [json.loads(line) for line in (EXAMPLE / "held_out.jsonl").read_text().splitlines()[:3]]
    lines[2]["answer"] = "1000"
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--model", str(EXAMPLE), "--data", str(data), "--max-new-tokens", "40", "--lm-eval", lm_eval]
    agreement.main([*options, "--limit", "3"])
    said = capsys.readouterr().out
    assert "3 questions, greedy, at most 40 tokens" in said and "prompts that are the same       3" in said
    assert "completions that are the same   1" in said
    rows = {line[:34].strip(): line[34:].split() for line in said.splitlines()}
    ours = int(rows["evaluate.py"][0])
    assert ours < 3 and rows["lm-eval, strict-match"] == ["0", str(3 - ours)]
    assert rows["lm-eval, flexible-extract"] == ["1", str(2 - ours)]
    assert "gold 1000: " in said and "'7' is right there" in said


def test_the_task_asks_what_the_program_asks_and_stops_where_it_does():
    turn = 'A "quoted" {{problem}}: \n'
    asked = agreement.Asked(Path("/a b/c"), limit=24, turn=turn, by_turns=False, flags=[])
    task = yaml.safe_load(agreement.task_file(asked))
    assert task["doc_to_text"] == turn and task["generation_kwargs"]["max_gen_toks"] == 24
    assert task["dataset_kwargs"]["data_files"] == {"test": "/a b/c/questions.jsonl"}
    assert task["doc_to_target"] == "{{answer}}" and task["generation_kwargs"]["do_sample"] is False


def test_where_lm_eval_fails_its_last_words_are_shown(tmp_path):
    with pytest.raises(SystemExit, match=r"failed:\n.*no such thing"):
        agreement.run([sys.executable, "-c", "raise SystemExit('no such thing')"])
