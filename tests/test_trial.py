"""What a user may do wrong, as a table: the command, the exit code, and what the one sentence must say.

Of every row it is held that there is no traceback, that the message is one line which names a flag or a file of the
command, and that nothing was written: every file that was there is there as it was. A row that ends after the run
folder has been made may leave what a row names, and nothing else.

The commands run in a folder (`world`) with good questions `good.jsonl`, a good model `m`, the run folder `run`, and all
the broken things that the rows name.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from conftest import SOLVED, character_tokenizer, random_model, write_questions
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

import dagrpo
import evaluate

ROOT = Path(dagrpo.__file__).parent
PROGRAMS = {"dagrpo": dagrpo.main, "evaluate": evaluate.main}
TINY = "--steps 1 --questions 2 --group-size 2 --eval-samples 1 --eval-every 0 --hold-out 1"
GOOD = [
    {"problem": f"{n}+{n}?", "answer": str(2 * n), "solution": f"\\boxed{{{2 * n}}}", "level": n % 2}
    for n in range(3, 13)
]

# ---------------------------------------------------------------------------------------------------------------------
# Flags: exit code 2, before anything is read
# ---------------------------------------------------------------------------------------------------------------------

FLAGS = [
    # names of other programs
    ("--lr 1e-5", "--lr: there is no such flag: it is --learning-rate here."),
    ("--beta 0.1", "--beta: there is no such flag: it is --kl here"),
    ("--num-generations 8", "it is --group-size here."),
    ("--num_generations 8", "it is --group-size here."),
    ("--batch-size 8", "a step is --questions times --group-size completions here"),
    ("--per-device-train-batch-size 8", "a step is --questions times --group-size completions here"),
    ("--per_device_train_batch_size=8", "a step is --questions times --group-size completions here"),
    ("--gradient-accumulation-steps 4", "--token-budget bounds the memory"),
    ("--gradient-checkpointing", "it is --checkpointing here."),
    ("--max-length 512", "it is --max-new-tokens here"),
    ("--max-completion-length 512", "it is --max-new-tokens here."),
    ("--max-prompt-length 512", "a prompt is never cut"),
    ("--num-train-epochs 3", "a run has --steps here"),
    ("--lora", "--lora: a value is missing behind it."),
    ("--lora -1", "--lora -1: it must be a whole number of at least 0."),
    ("--lora 4 --lora-alpha 0", "--lora-alpha 0.0: it must be a number above 0."),
    ("--lora-targets q_proj", "--lora-targets q_proj: without --lora there is no adapter; leave it out."),
    ("--merge", "--merge: without --lora there is no adapter; leave it out."),
    ("--use-peft", "it is --lora RANK here."),
    ("--lora-r 8", "it is --lora RANK here."),
    ("--qlora", "weights are fp32; --lora RANK trains an adapter beside them."),
    ("--temp 0.7", "it is --temperature here."),
    ("--version", "pyproject.toml"),
    ("--output-dir x", "it is --out here."),
    ("--output_dir=x", "it is --out here."),
    ("--bf16", "products are bf16 over fp32 weights"),
    ("--wandb", "it is --track wandb here"),
    ("--report-to wandb", "it is --track here"),
    ("--vllm", "completions are sampled by the program itself"),
    ("--use-vllm true", "completions are sampled by the program itself"),
    ("--epsilon 0.2", "it is --clip-low and --clip-high here."),
    ("--reward-funcs f", "it is --reward here."),
    ("--dataset x", "it is --data here."),
    ("--model-name-or-path x", "it is --model here."),
    ("--eval-steps 5", "it is --eval-every here."),
    ("--warmup-ratio 0.1", "it is --warmup here, in optimizer steps."),
    # typing
    ("--learnin-rate 1", "--learnin-rate: there is no such flag. Did you mean --learning-rate?"),
    ("--learning_rate 1", "Did you mean --learning-rate?"),
    ("--Steps 3", "Did you mean --steps?"),
    ("–steps 3", "Did you mean --steps?"),
    ("-steps 3", "Did you mean --steps?"),
    ("--wombat", "--wombat: there is no such flag. --help lists them all."),
    ("--group 4", "--group: there is no such flag."),
    ("good.jsonl", "good.jsonl: no flag stands before it; questions are given by --data good.jsonl"),
    ("data.zip", "data.zip: no flag stands before it; questions are given by --data data.zip"),
    ("m", "m: no flag stands before it; --data takes questions, --model a model"),
    ("--map problem", "--map problem: it must be NAME=FIELD, such as problem=question,answer=target."),
    ("--map query=q", "--map query=q: 'query' is no field here; before the = stands one of problem, answer, solution"),
    ("--map answer=a,answer=b", "--map answer=b: answer is given twice"),
    ("--eval-data good.jsonl good.jsonl", "--eval-data good.jsonl: it is named twice; leave one of them out."),
    ("--steps", "--steps: a value is missing behind it."),
    ("--model --data good.jsonl", "--model: a value is missing behind it."),
    ("--data", "--data: a value is missing behind it."),
    ("--rollouts=true", "it takes no value"),
    ("--steps 1 --steps 2", "--steps: it is given twice"),
    # values
    ("--steps 0", "--steps 0: it must be a whole number of at least 1."),
    ("--steps -3", "--steps -3: it must be a whole number of at least 1."),
    ("--steps 2.5", "--steps 2.5: it must be a whole number"),
    ("--steps many", "--steps many: it must be a whole number"),
    ("--learning-rate nan", "--learning-rate nan: it must be a number of at least 0."),
    ("--learning-rate inf", "--learning-rate inf: it must be a number"),
    ("--learning-rate 1e999", "it must be a number of at least 0."),
    ("--learning-rate 1e38", "--learning-rate 1e+38: it must be at most 3.4e+37: AdamW's first step divides it by"),
    ("--learning-rate 1e9", "--learning-rate 1e+09 with --weight-decay 0.01: their product must be at most 1:"),
    ("--weight-decay 1e9", "--learning-rate 0.0002 with --weight-decay 1e+09: their product must be at most 1:"),
    ("--temperature 0", "--temperature 0.0: it must be a number above 0."),
    ("--temperature 1e-40", "--temperature 1e-40: it must be at least 1e-06: logits divided by less overflow."),
    ("--eval-temperature 1e-40", "--eval-temperature 1e-40: it must be at least 1e-06"),
    ("--top-p 2", "--top-p 2.0: it must be a number above 0 and at most 1."),
    ("--seed -1", "--seed -1: it must be a whole number of at least 0 and at most 9223372036854775807."),
    ("--seed 99999999999999999999999", "it must be a whole number of at least 0 and at most 9223372036854775807."),
    ("--device foo", "--device foo: it must be cpu, cuda, or cuda:N"),
    ("--device mps", "--device mps: it must be cpu, cuda, or cuda:N"),
    ("--device CPU", "--device CPU: it must be cpu, cuda, or cuda:N"),
    ("--device cuda:x", "--device cuda:x: it must be cpu, cuda, or cuda:N"),
    ("--device cuda", "--device cuda: PyTorch finds no GPU here"),
    ("--device cuda:9", "--device cuda:9: PyTorch finds no GPU here"),
    ("--method ppo", "--method ppo: it must be one of dagrpo"),
    ("--scorer wombat", "--scorer wombat: it must be one of"),
    ("--threshold 2", "--threshold 2.0: it must be a number of at least 0 and at most 1."),
    ("--clip-high off", "or the word none."),
    # what does not go together
    ("--model m", "--data is missing: with --model, name the file or Hub set"),
    ("--data good.jsonl", "--data good.jsonl without --model: which model is to learn from it?"),
    ("--method sft --group-size 4", "--group-size 4: without rollouts each group is one anchor"),
    ("--method sft --top-p 0.9", "--top-p 0.9: without rollouts (--method sft) nothing is sampled"),
    ("--method sft --resample 2", "--resample 2: without rollouts (--method sft) nothing is sampled"),
    ("--method grpo --gamma 0.5", "--gamma 0.5: without anchors nothing of theirs counts"),
    ("--method grpo --threshold 0.5", "--threshold 0.5: with --rectify none nothing is compared with it"),
    ("--clip-high 0.5", "--clip-high 0.5: with one update of each batch every ratio is 1"),
    (
        "--model m --data good.jsonl --eval-data good.jsonl --hold-out 3",
        "--hold-out 3: with --eval-data nothing is held",
    ),
    ("--group-size 1", "--group-size 1: it must be at least 2"),
    ("--force", "--force: without --resume there is nothing that it would overrule; leave it out."),
    # numbers at their edges, and what other flags do not go with
    ("--threshold -1", "--threshold -1.0: it must be a number of at least 0 and at most 1."),
    ("--kl -1", "--kl -1.0: it must be a number of at least 0."),
    ("--weight-decay inf", "--weight-decay inf: it must be a number of at least 0."),
    ("--max-grad-norm 0", "--max-grad-norm 0.0: it must be a number above 0."),
    ("--token-budget 0", "--token-budget 0: it must be a whole number of at least 1."),
    ("--beta1 1", "--beta1 1.0: it must be a number of at least 0 and at most 0.999."),
    ("--keep 0", "--keep 0: it must be a whole number of at least 1."),
    ("--questions 1e3", "--questions 1e3: it must be a whole number of at least 1."),
    ("--hold-out 0", "--hold-out 0: it must be a whole number of at least 1."),
    ("--clip-low 2", "--clip-low 2.0: it must be a number of at least 0 and at most 1, or the word none."),
    ("--steps=", "--steps : it must be a whole number of at least 1."),
    ("--steps -- 3", "--steps: a value is missing behind it."),
    ("--checkpointing=yes", "--checkpointing/--no-checkpointing: it takes no value"),
    ("--reward", "--reward: a value is missing behind it."),
    ("--scorer judge", "--judge-model is missing: --scorer judge needs one"),
    ("--scorer judge --judge-model m --judge-url ftp://x", "--judge-url ftp://x: it must be an address such as"),
    ("--scorer judge --judge-model nowhere", "--judge-model nowhere: there is no such directory."),
    ("--judge-timeout 3", "--judge-timeout 3.0: without --scorer judge nothing is asked"),
    ("--metric optimizer --scorer state", "--metric optimizer: it is known of the output embedding alone"),
    ("--rectify pair --scorer token", "--rectify pair: rule (5) compares gradients, so --scorer gradient or state"),
    ("--rectify pair --threshold 0.5", "--threshold 0.5: with --rectify pair nothing is compared with it"),
    ("--method sft --kl 0.1", "--kl 0.1: it is estimated on sampled completions"),
    ("--every-group --anchors none", "--anchors none: with an anchor in every group (--every-group) it must be"),
    ("--every-group --anchors-per-group 8", "--anchors-per-group 8: it must be less than --group-size."),
    ("--recipe missing.toml", "--recipe missing.toml: it cannot be read (No such file or directory)."),
    ("--recipe good.jsonl", "--recipe good.jsonl: it is not TOML"),
    # runs to go on with
    ("--resume nowhere", "--resume nowhere: there is no run in this folder (config.json is missing)."),
    ("--resume good.jsonl", "--resume good.jsonl: there is no run in this folder (config.json is missing)."),
    ("--resume m", "--resume m: it is the folder of a model, not of a run."),
    ("--resume run/model", "--resume run/model: it is the folder of a model, not of a run. Did you mean run?"),
    ("--resume proj", "--resume proj: config.json is not one of this version of the program"),
    ("--updates 99", "--updates 99: it must be at most --questions"),
    ("--right-at 1", "--right-at 1.0: the verifier gives 1 for right and 0 for wrong"),
    ("--reward mine.py:good", "--right-at is missing: with --reward"),
    ("--anchors missing.jsonl", "--anchors missing.jsonl: it must be data, none, or a file of solutions that exists."),
]

EVALUATE = "--model m --data good.jsonl "
EVALUATE_FLAGS = [
    ("", "--model is missing"),
    ("--model m", "--data is missing"),
    ("--data good.jsonl", "--model is missing"),
    (EVALUATE + "--max 30", "--max: there is no such flag."),
    (EVALUATE + "--max-new 30", "--max-new: there is no such flag."),
    (EVALUATE + "--sampels 3", "Did you mean --samples?"),
    (EVALUATE + "--tasks gsm8k", "it is --bench here, for files --data."),
    (EVALUATE + "--template-arg effort", "--template-arg effort: it must be NAME=VALUE"),
    (EVALUATE + "--prompt-file no.txt", "--prompt-file no.txt: it cannot be read (No such file or directory)."),
    (EVALUATE + "--prompt-file good.jsonl", "--prompt-file good.jsonl: {problem} does not stand in it"),
    (EVALUATE + "--shuffle-options -1", "--shuffle-options -1: it must be a whole number of at least 0."),
    (EVALUATE + "--few-shot good.jsonl", "it is --examples here."),
    (EVALUATE + "--samples 99999999999", "--samples 99999999999: with the 10 questions of good.jsonl that is more"),
    ("--model m --bench gsm9k", "--bench gsm9k: there is no benchmark 'gsm9k'; there are aime24, aime25"),
    ("--model m --bench mawps", "--bench mawps: no set on the Hub is read for it. Name a file: --bench mawps=FILE"),
    ("--model m --bench gsm8k=no.jsonl", "--bench gsm8k=no.jsonl: there is no such file."),
    ("--model m --bench gsm8k --bench-dir no", "--bench-dir no: there is no such folder."),
    (EVALUATE + "--bench-dir m", "--bench-dir m: without --bench nothing is read from it; leave it out."),
    (EVALUATE + "--n 3", "it is --samples here."),
    (EVALUATE + "--num-samples 3", "it is --samples here."),
    (EVALUATE + "--temp 1", "it is --temperature here."),
    (EVALUATE + "--output x.json", "it is --out here."),
    (EVALUATE + "--output-dir x", "it is --out here."),
    (EVALUATE + "--device cpu", "--device: there is no such flag: not here: the GPU is taken where there is one"),
    (EVALUATE + "--batch-size 3", "not needed"),
    (EVALUATE + "--max-length 3", "it is --max-new-tokens here"),
    (EVALUATE + "--vllm", "completions are sampled by the program itself"),
    (EVALUATE + "--version", "pyproject.toml"),
    (EVALUATE + "--wombat", "--wombat: there is no such flag. --help lists them all."),
    ("good.jsonl --model m", "good.jsonl: no flag stands before it; questions are given by --data good.jsonl"),
    (EVALUATE + "--samples", "--samples: a value is missing behind it."),
    (EVALUATE + "--samples few", "--samples few: it must be a whole number."),
    (EVALUATE + "--samples 0", "--samples 0: it must be a whole number of at least 1."),
    (EVALUATE + "--samples 2 --temperature 0", "use --samples 1."),
    (EVALUATE + "--temperature nan", "--temperature nan: it must be a number of at least 0."),
    (EVALUATE + "--temperature -1", "--temperature -1: it must be a number of at least 0."),
    (EVALUATE + "--temperature 1e-40", "it must be 0, which takes the likeliest token, or at least 1e-06"),
    (EVALUATE + "--temperature warm", "--temperature warm: it must be a number."),
    (EVALUATE + "--top-p 0", "--top-p 0: it must be above 0 and at most 1."),
    (EVALUATE + "--top-p 2", "--top-p 2: it must be above 0 and at most 1."),
    (EVALUATE + "--top-p nan", "--top-p nan: it must be above 0 and at most 1."),
    (EVALUATE + "--limit 0", "--limit 0: it must be a whole number of at least 1."),
    (EVALUATE + "--max-new-tokens 0", "--max-new-tokens 0: it must be a whole number of at least 1."),
    (EVALUATE + "--seed -1", "--seed -1: it must be a whole number of at least 0."),
    (EVALUATE + "--seed 99999999999999999999", "at most 9223372036854775807."),
    (EVALUATE + "--samples 1 --samples 2", "--samples: it is given twice"),
    ("--model m --data good.jsonl good.jsonl", "--data good.jsonl: it is named twice"),
    # where the result goes
    (EVALUATE + "--out good.jsonl", "--out good.jsonl: it is a file of --data, which would be lost"),
    (EVALUATE + "--out ./link.jsonl", "--out ./link.jsonl: it is a file of --data, which would be lost"),
    (EVALUATE + "--out notes.txt", "--out notes.txt: there is a file that this program did not write"),
    (EVALUATE + "--out m/config.json", "--out m/config.json: there is a file that this program did not write"),
    (EVALUATE + "--out other.json", "--out other.json: there is a file that this program did not write"),
    (EVALUATE + "--out run", "--out run: it is a folder; name a file in it"),
    (EVALUATE + "--out newfolder/", "--out newfolder/: it is a folder; name a file in it"),
    (EVALUATE + "--out notes.txt/x.json", "notes.txt is not a folder."),
    (EVALUATE + "--out /proc/x.json", "--out /proc/x.json: "),
    (EVALUATE + "--out ''", "--out: the name of the file is empty."),
]

OUT = [  # where a run cannot be: exit code 2
    ("m", "--out m: this is no empty folder, and a run would write over what is there."),
    ("m/sub", "--out m/sub: this is in the folder of --model m. Give another one."),
    ("proj", "--out proj: this is no empty folder"),
    ("run", "--out run: there is a run in this folder already. Go on with it by --resume run"),
    (".", "--out .: this is no empty folder"),
    ("notes.txt", "--out notes.txt: this is no empty folder"),
    ("/dev/null", "--out /dev/null: this is no empty folder"),
    ("notes.txt/x", "--out notes.txt/x: nothing can be written there (Not a directory). Give another place."),
    ("/proc/x", "--out /proc/x: nothing can be written there (No such file or directory)."),
    ("dead", "--out dead: nothing can be written there (File exists)."),
    ("x" * 300, "nothing can be written there (File name too long)."),
]

# ---------------------------------------------------------------------------------------------------------------------
# Data: exit code 1, before the model is loaded. The file, what the message says; both programs
# ---------------------------------------------------------------------------------------------------------------------


def jsonl(*lines: object) -> bytes:
    return b"".join(
        (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in (GOOD[0], *lines, GOOD[1])
    )


def with_answer(text: str) -> bytes:
    return f'{{"problem": "1+1?", "answer": {text}}}'.encode()


DATA = [
    ("cut.jsonl", jsonl(b'{"problem": "1+1?", "ans'), "cut.jsonl:2: this line is not JSON ("),
    ("single.jsonl", jsonl(b"{'problem': '1+1?', 'answer': '2'}"), "single.jsonl:2: this line is not JSON ("),
    ("words.jsonl", jsonl(b"hello"), "words.jsonl:2: this line is not JSON ("),
    ("list.jsonl", jsonl([1, 2]), "list.jsonl:2: this line holds a list; it must hold an object"),
    ("number.jsonl", jsonl(5), "number.jsonl:2: this line holds a int"),
    ("null.jsonl", jsonl(None), "null.jsonl:2: this line holds a NoneType"),
    (
        "no-problem.jsonl",
        jsonl({"answer": "2"}),
        "no-problem.jsonl:2: the field `problem` is missing; the line has answer",
    ),
    ("nothing.jsonl", jsonl({}), "nothing.jsonl:2: the field `problem` is missing; the line has no fields"),
    ("query.jsonl", jsonl({"query": "?", "answer": "2"}), "Is it `query` there? --map problem=query"),
    (
        "no-answer.jsonl",
        jsonl({"problem": "?"}),
        "no-answer.jsonl:2: the field `answer` is missing; the line has problem",
    ),
    ("target.jsonl", jsonl({"problem": "?", "target": "2"}), "Is it `target` there? --map answer=target"),
    ("rows.jsonl", jsonl({"messages": [{"from": "human", "value": "?"}]}), "a turn must have a `role`, one of system"),
    ("unmarked.jsonl", jsonl({"problem": "?", "solution": "so\nit is"}), "Where is it? --map answer=NAME To go on"),
    (
        "blank.jsonl",
        jsonl({"problem": "  ", "answer": "2"}),
        "`problem` is '  '; it must be a string that is not empty",
    ),
    (
        "blank-answer.jsonl",
        jsonl(with_answer('""')),
        "`answer` is ''; it must be a string that is not empty, or a number",
    ),
    ("null-answer.jsonl", jsonl(with_answer("null")), "`answer` is None; it must be a string"),
    ("true.jsonl", jsonl(with_answer("true")), "`answer` is True; it must be a string"),
    ("list-answer.jsonl", jsonl(with_answer('["2"]')), "`answer` is ['2']; it must be a string"),
    ("nan.jsonl", jsonl(with_answer("NaN")), "`answer` is nan; it must be a string"),
    ("infinity.jsonl", jsonl(with_answer("-Infinity")), "`answer` is -inf; it must be a string"),
    ("digits.jsonl", jsonl(with_answer("1" * 5000)), "digits.jsonl:2: this line is not JSON (Exceeds the limit"),
    ("long.jsonl", jsonl(with_answer(json.dumps(["x" * 9000]))), "`answer` is ['xxxxxxxx"),
    ("number-problem.jsonl", jsonl({"problem": 5, "answer": "2"}), "`problem` is 5; it must be a string"),
    (
        "chat.jsonl",
        jsonl({"problem": [{"role": "user"}], "answer": "2"}),
        "turn 0 of `problem` is {'role': 'user'}; a turn must have a `role`",
    ),
    ("solution.jsonl", jsonl({**SOLVED, "solution": 5}), "`solution` is 5; it must be a string, null, or left out"),
    ("level.jsonl", jsonl({**SOLVED, "level": ["easy"]}), "`level` is ['easy']; it must be a string, a number, null"),
    ("level-object.jsonl", jsonl({**SOLVED, "level": {"a": 1}}), "`level` is {'a': 1}; it must be a string, a number"),
    ("level-nan.jsonl", jsonl(b'{"problem": "?", "answer": "1", "level": NaN}'), "`level` is nan; it must be"),
    ("choices.jsonl", jsonl({**SOLVED, "choices": "AB"}), "`choices` must be a list of strings"),
    ("choices-numbers.jsonl", jsonl({**SOLVED, "choices": [1, 2]}), "`choices` must be a list of strings"),
    (
        "letter.jsonl",
        jsonl({**SOLVED, "choices": ["1", "2"]}),
        "with `choices`, `answer` must be one of A, B. It is '2'",
    ),
    ("index.jsonl", jsonl({"problem": "?", "answer": 0, "choices": ["1"]}), "`answer` must be one of A. It is '0'"),
    ("surrogate.jsonl", jsonl(b'{"problem": "\\ud83d", "answer": "2"}'), "`problem` has half a character"),
    ("surrogate-answer.jsonl", jsonl(with_answer('"\\udc00"')), "`answer` has half a character"),
    ("deep.jsonl", jsonl(b"[" * 100_000), "deep.jsonl:2: the line has brackets within brackets, too deep to be read"),
    ("deep-answer.jsonl", jsonl(with_answer("[" * 5000 + "]" * 5000)), "too deep to be read"),
    (
        "latin.jsonl",
        jsonl('{"problem": "caf\xe9", "answer": "2"}'.encode("latin-1")),
        "latin.jsonl:2: the line is not UTF-8 (the byte 0xe9 in column 17)",
    ),
    ("utf16.jsonl", jsonl().decode().encode("utf-16"), "utf16.jsonl:1: the file is UTF-16; it must be UTF-8: iconv"),
    ("escape.jsonl", jsonl(b'{"\\u001b[2J": 1}'), "the line has \\x1b[2J."),
    ("wide.jsonl", jsonl(b"x" * 50_000_000), "wide.jsonl:2: the line is longer than 1,000,000 characters"),
    ("empty.jsonl", b"", "--data empty.jsonl: the file has no questions."),
    ("newlines.jsonl", b"\n\r\n  \n", "--data newlines.jsonl: the file has no questions."),
    ("cut.json", json.dumps(GOOD).encode()[:-9], "cut.json:1: the file is not JSON ("),
    ("object.json", b'{\n "name": "x"\n}', "object.json:1: the file is one JSON object with name; it must hold a list"),
    (
        "lists.json",
        json.dumps({"a": GOOD, "b": GOOD}).encode(),
        "it has several parts; name one of lists.json:a, ",
    ),
    ("row.json", json.dumps([*GOOD, {"a": 1}], indent=1).encode(), "row.json:row 11: the field `problem` is missing"),
    ("empty.json", b"[]", "--data empty.json: the file has no questions."),
    ("cells.csv", b"problem,answer\n1+1?,2\n2+2?\n", "cells.csv:3: the row has 1 columns, and the head of the file 2."),
    (
        "open.csv",
        b'problem,answer\n"1+1?,2\n',
        "open.csv:2: the row that begins here is no CSV (unexpected end",
    ),
    ("latin.csv", b"problem,answer\ncaf\xe9,2\n", "latin.csv:2: the line is not UTF-8 (the byte 0xe9 in column 4)"),
    ("no-head.tsv", b"1+1?\t2\n2+2?\t4\n", "no-head.tsv:2: the field `problem` is missing; the line has 1+1?, 2"),
    ("part.arrow", b"\xff\xff\xff\xff", "part.arrow: it is an Arrow file, a part of a data set."),
    ("packed.jsonl.gz", b"\x1f\x8b\x08\0" + b"\0" * 9, "packed.jsonl.gz: it is damaged or cut off, and cannot be"),
    ("packed.jsonl.xz", b"\xfd7zXZ\0", "the file is packed (xz). Unpack it first: unxz -k"),
    ("packed.zip", b"PK\x03\x04", "the file is packed (zip). Unpack it first: unzip packed.zip"),
    ("packed.jsonl.zst", b"\x28\xb5\x2f\xfd\0", "the file is packed (zstd). Unpack it first: unzstd"),
    ("binary.jsonl", bytes(range(256)) * 40, "binary.jsonl:1: this line is not JSON (Expecting value"),
    (
        "counted.jsonl",
        jsonl({"problem": "?"}, {"problem": "!"}, b"{"),
        "Lines like it: 1 more. Lines with other faults: 1, the first of them counted.jsonl:4. To go on",
    ),
    (
        "contradiction.jsonl",
        jsonl({**SOLVED}, {**SOLVED, "answer": "3"}),
        "contradiction.jsonl:2 and contradiction.jsonl:3 are the same question with different answers, 2 and 3",
    ),
    (
        "contradiction-letters.jsonl",
        jsonl(*({"problem": "?", "choices": ["1", "2"], "answer": letter} for letter in "AB")),
        "different answers, A and B",
    ),
    ("unreadable.jsonl", b'{"problem": "?", "answer": "\\\\frac{1"}\n', "unreadable.jsonl: "),
]

NO_FILE = [
    ("missing.jsonl", "--data missing.jsonl: there is no such file."),
    ("./missing", "--data ./missing: there is no such file."),
    ("/nowhere/x", "--data /nowhere/x: there is no such file."),
    ("~/missing.txt", "--data ~/missing.txt: there is no such file."),
    ("run/missing", "--data run/missing: there is no such file."),
    ("missing.parquet", "--data missing.parquet: there is no such file."),
    ("a/b/c/d", "--data a/b/c/d: there is no such file."),
    ("'two words'", "--data two words: there is no such file."),
    ("missing.jsonl:train", "--data missing.jsonl:train: there is no such file."),
    ("run", "--data run: it has several parts; name one of run:config, run:metrics."),
    ("bare", "--data bare: it is a folder without a file of questions (.jsonl, .json, .csv, .tsv, .parquet)."),
    (".", "--data .: it has several parts; name one of "),
    ("good.jsonl:train", "--data good.jsonl:train: this file has no parts; leave out the :train."),
    ("/dev/null", "--data /dev/null: the file has no questions."),
    ("''", "--data: the name of the file is empty."),
    ("some/set", "--data some/set: there is no such file, and no such set on the Hub, or no network (ConnectionError"),
]

TOO_LITTLE = [
    (
        "--data few.jsonl",
        "4 different usable questions are too few to train on and to hold a fifth of them out: give",
    ),
    ("--data copies.jsonl", "give five or more, or others by --eval-data."),
    (
        "--data some-unreadable.jsonl",
        "What was left out before: 3 questions left out: their gold answer cannot be read.",
    ),
    ("--data good.jsonl --eval-data link.jsonl", "all its 10 questions are in --eval-data too"),
    (
        "--data good.jsonl --eval-data unreadable.jsonl",
        "--eval-data unreadable.jsonl: no question has an answer that",
    ),
    (
        "--data unsolved.jsonl --method sft",
        "unsolved.jsonl: no question has a `solution`, and this method learns from",
    ),
    (
        "--data unsolved.jsonl --method luffy",
        "unsolved.jsonl: no question has a `solution`, and this method learns",
    ),
]

# ---------------------------------------------------------------------------------------------------------------------
# Models: exit code 1. What is made of a good one, what the message says; both programs
# ---------------------------------------------------------------------------------------------------------------------


def configured(**changes: object):
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return change


def written(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def without(*patterns: str):
    return lambda folder: [path.unlink() for pattern in patterns for path in folder.glob(pattern)]


def with_weights_of(model: torch.nn.Module):
    return lambda folder: model.save_pretrained(folder)


def nan_somewhere(folder: Path) -> None:
    model = random_model()
    model.model.layers[1].mlp.up_proj.weight.data[2, 3] = torch.nan
    model.save_pretrained(folder)


def a_layer_missing(folder: Path) -> None:
    random_model(num_hidden_layers=1).save_pretrained(folder)
    configured(num_hidden_layers=2, layer_types=["full_attention"] * 2)(folder)


class Runs:
    """Unpickled, it makes a file."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def a_pickle_with_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Runs()}, folder / "pytorch_model.bin")


def code_of_its_own(folder: Path) -> None:
    configured(model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})(folder)
    (folder / "own.py").write_text("open('executed', 'w')\n")


def shards_missing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def small_t5(folder: Path) -> None:
    config = T5Config(vocab_size=64, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(folder)


def small_bert(folder: Path) -> None:
    config = BertConfig(vocab_size=64, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertForMaskedLM(config).save_pretrained(folder)


EARLY = [  # found before the run folder is made
    ("no-config", without("config.json"), "no-config: it is no model folder: config.json is missing."),
    ("nothing", without("*"), "nothing: it is no model folder: config.json is missing."),
    ("broken-config", written("config.json", b"{"), "broken-config: its config.json is no JSON. Is it damaged?"),
    ("config-list", written("config.json", b"[]"), "config-list: it is no model folder"),
    ("config-bare", written("config.json", b'{"a": 1}'), "config.json has no model_type."),
    ("no-weights", without("*.safetensors"), "there are no weights in it (model.safetensors)."),
    ("no-tokenizer", without("tokenizer*"), "there is no tokenizer in it (tokenizer.json, tokenizer_config.json)."),
    ("empty-weights", written("model.safetensors", b""), "model.safetensors is empty. Copy or download it again."),
    ("cut-weights", lambda folder: os.truncate(folder / "model.safetensors", 50_000), "model.safetensors is cut off"),
    (
        "cut-header",
        lambda folder: os.truncate(folder / "model.safetensors", 100),
        "model.safetensors is damaged or cut",
    ),
    ("noise", written("model.safetensors", bytes(range(1, 200)) * 9), "model.safetensors is damaged or cut off"),
    (
        "wrong-header",
        written("model.safetensors", b"\x05\0\0\0\0\0\0\0hello"),
        "model.safetensors is damaged (its header",
    ),
    ("pointer", written("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), "run git lfs pull"),
    (
        "no-shard",
        shards_missing,
        "model-00001-of-00002.safetensors is missing, which model.safetensors.index.json names",
    ),
    (
        "adapter",
        lambda folder: [without("*")(folder), written("adapter_config.json", b"{}")(folder)],
        "an adapter (LoRA)",
    ),
    (
        "folder-for-weights",
        lambda folder: [without("*.safetensors")(folder), (folder / "model.safetensors").mkdir()],
        "model.safetensors is no file. Copy or download it again.",
    ),
    ("t5", small_t5, "t5: t5 has an encoder and is no causal language model"),
    ("bert", small_bert, "bert: BertForMaskedLM is no causal language model"),
]
LATE = [  # found when it is loaded
    ("broken-tokenizer", written("tokenizer.json", b"{"), "its tokenizer cannot be read (JSONDecodeError"),
    ("empty-tokenizer", written("tokenizer.json", b"{}"), "its tokenizer cannot be read (KeyError"),
    ("other-shapes", configured(intermediate_size=50), "has weights of other shapes than its config.json says"),
    (
        "unknown-kind",
        configured(model_type="wombat"),
        "is of the architecture 'wombat', which this transformers does not",
    ),
    ("pictures", configured(model_type="vit", architectures=["ViT"]), "is no causal language model (ViT)"),
    ("text-size", configured(hidden_size="many"), "cannot be read (StrictDataclass"),
    ("no-heads", configured(num_attention_heads=0), "cannot be read (ZeroDivisionError"),
    ("activation", configured(hidden_act="wombat"), "cannot be read (KeyError: 'wombat')"),
    (
        "pickle",
        lambda f: [without("*.safetensors")(f), written("pytorch_model.bin", b"junk" * 9)(f)],
        "cannot be read (",
    ),
    ("evil-pickle", a_pickle_with_code, "a pickle file that holds more than weights"),
    ("own-code", code_of_its_own, "this program does not run code from model folders"),
    ("layer-missing", a_layer_missing, "the checkpoint lacks 12 of the model's tensors"),
    ("nan", nan_somewhere, "1 of its 27 tensors hold NaN or infinity, such as model.layers.1.mlp.up_proj.weight"),
    (
        "end-in-words",
        written("generation_config.json", b'{"eos_token_id": "x"}'),
        "its eos_token_id is 'x' in generation_config.json; it must be a number.",
    ),
    ("no-layers", configured(num_hidden_layers=-1), "cannot be read (StrictDataclass"),
    ("other-rotation", configured(rope_scaling={"type": "wombat", "factor": 2}), "cannot be read (KeyError: 'wombat')"),
    ("quantized", configured(quantization_config={"quant_method": "gptq", "bits": 4}), "a package that is missing ("),
    ("small-vocabulary", with_weights_of(random_model(vocab_size=40)), "its tokenizer has 64 tokens, its embedding 40"),
]
NO_MODEL = [
    ("run", "--model run: it is the folder of a run. Did you mean run/model?"),
    ("early-run", "--model early-run: it is the folder of a run that has saved no model."),
    ("./nowhere", "--model ./nowhere: there is no such folder."),
    ("/nowhere", "--model /nowhere: there is no such folder."),
    ("run/nowhere", "--model run/nowhere: there is no such folder."),
    ("a/b/c", "--model a/b/c: there is no such folder."),
    ("'two words'", "--model two words: there is no such folder."),
    ("good.jsonl", "--model good.jsonl: it is a file. Name the folder with config.json, or a .gguf file."),
    ("endless", "--model endless: it is a link that leads nowhere."),
    ("https://huggingface.co/x/y", "--model https://huggingface.co/x/y: there is no such folder."),
    ("m/model.safetensors", "--model m/model.safetensors: it is a file. Name the folder with config.json"),
    ("cut.gguf", "--model cut.gguf cannot be read ("),
    ("missing.gguf", "--model missing.gguf: there is no such file."),
    ("page.gguf", "--model page.gguf: it is no GGUF file."),
    ("run.gguf", "--model run.gguf: there is no such file."),
]

# ---------------------------------------------------------------------------------------------------------------------
# Rewards
# ---------------------------------------------------------------------------------------------------------------------

MINE = """
import math

def good(texts, questions):
    return [float(len(text)) for text in texts]

def few(texts, questions):
    return [1.0]

def more(texts, questions):
    return [1.0] * (len(texts) + 1)

def nan(texts, questions):
    return [math.nan] * len(texts)

def infinite(texts, questions):
    return [math.inf] * len(texts)

def huge(texts, questions):
    return [1e300] * len(texts)

def nothing(texts, questions):
    return None

def words(texts, questions):
    return ["good"] * len(texts)

def lists(texts, questions):
    return [[1.0]] * len(texts)

def raises(texts, questions):
    return [1 / 0 for text in texts]

def no_key(texts, questions):
    return [questions[0]["nowhere"]] * len(texts)

def one_argument(texts):
    return [1.0] * len(texts)

def many_lines(texts, questions):
    raise ValueError("first\\nsecond")

def scores(questions, texts):
    return [[0.5] * (len(group) + 1) for group in texts]

def scores_raise(questions, texts):
    return questions[0]["nowhere"]

def differing(texts, questions):
    return [float(n % 2) for n in range(len(texts))]

def by_number(texts, questions):
    return {n: 1.0 for n in range(len(texts))}

def text(texts, questions):
    return "1" * len(texts)

def number(texts, questions):
    return 1.0

def leaves(texts, questions):
    raise SystemExit(3)

def recurses(texts, questions):
    return recurses(texts, questions)

async def waits(texts, questions):
    return [1.0] * len(texts)

def nothing_each(texts, questions):
    return [None] * len(texts)

def three_arguments(texts, questions, more):
    return [1.0] * len(texts)

def takes_away(texts, questions):
    texts.clear()
    return []

def half_a_character(texts, questions):
    raise ValueError("\\ud83d\\x1b[2J")

def clears(texts, questions):
    for question in questions:
        question.clear()
    return [1.0] * len(texts)

value = 3
"""
REWARDS = [  # before the model is loaded
    ("mine.py:nowhere", "mine.py has no function 'nowhere'. It has good, few, more, nan, infinite."),
    ("mine.py:value", "mine.py has no function 'value'."),
    ("mine.py", "--reward mine.py: it must be file.py:function."),
    ("missing.py:f", "--reward missing.py:f: it must be file.py:function, and there is no file 'missing.py'."),
    ("notes.txt:f", "--reward notes.txt:f: notes.txt is no Python file"),
    ("run:f", "--reward run:f: it must be file.py:function"),
    ("helper.py:f", "it raised ModuleNotFoundError: No module named 'not_installed' (helper.py, line 3)"),
    ("syntax.py:f", "it raised SyntaxError: "),
    (
        "tabs.py:f",
        "tabs.py cannot be run: it raised TabError: inconsistent use of tabs and spaces in indentation (tabs",
    ),
    ("empty.py:f", "--reward empty.py:f: empty.py has no function 'f'."),
    ("'mine.py:good()'", "--reward mine.py:good(): it must be file.py:function."),
    ("torch:f", "--reward torch:f: it must be file.py:function, and there is no file 'torch'."),
    ("exits.py:f", "it raised SystemExit: 3 (exits.py, line 1)"),
    ("mine.py:good=0", "--reward mine.py:good=0: the weight is '0'; it must be a number that is not 0."),
    ("mine.py:good=much", "the weight is 'much'; it must be a number that is not 0."),
    ("'mine.py:good*0.5'", "--reward mine.py:good*0.5: it must be file.py:function"),
    ("mine.py:good mine.py:good=2", "one function is named twice"),
    ("mine.py:good missing.py:f", "--reward missing.py:f: it must be file.py:function"),
]
REWARDS_THAT_FAIL = [  # at the first completions
    ("mine.py:few", "--reward mine.py:few: it gave 1 values for"),
    ("mine.py:more", "--reward mine.py:more: it gave "),
    ("mine.py:nan", "--reward mine.py:nan: it gave nan at good.jsonl:"),
    ("mine.py:infinite", "--reward mine.py:infinite: it gave inf at good.jsonl:"),
    ("mine.py:huge", "--reward mine.py:huge: it gave 1e+300 at good.jsonl:"),
    ("mine.py:nothing", "--reward mine.py:nothing: it gave a NoneType; it must give one finite float for each of the"),
    ("mine.py:words", "--reward mine.py:words: it gave 'good' at good.jsonl:"),
    ("mine.py:lists", "--reward mine.py:lists: it gave [1.0] at good.jsonl:"),
    ("mine.py:raises", "--reward mine.py:raises: it raised ZeroDivisionError: division by zero (mine.py, line 32)"),
    ("mine.py:no_key", "--reward mine.py:no_key: it raised KeyError: 'nowhere' (mine.py, line 35)"),
    ("mine.py:one_argument", "--reward mine.py:one_argument: it raised TypeError: one_argument() takes 1 positional"),
    ("mine.py:many_lines", "--reward mine.py:many_lines: it raised ValueError: first (mine.py, line 41)"),
    ("mine.py:by_number", "--reward mine.py:by_number: it gave a dict; it must give one finite float for each of the"),
    ("mine.py:text", "--reward mine.py:text: it gave a str; it must give one finite float for each of the"),
    ("mine.py:waits", "--reward mine.py:waits: it gave a coroutine; it must give one finite float for each of the"),
    ("mine.py:number", "--reward mine.py:number: it gave a float; it must give one finite float for each of the"),
    ("mine.py:leaves", "--reward mine.py:leaves: it raised SystemExit: 3 (mine.py, line "),
    ("mine.py:nothing_each", "--reward mine.py:nothing_each: it gave None at good.jsonl:"),
    ("mine.py:three_arguments", "it raised TypeError: three_arguments() missing 1 required positional argument"),
    ("mine.py:takes_away", "--reward mine.py:takes_away: it gave 0 values for"),
    ("mine.py:half_a_character", "it raised ValueError: \\ud83d\\x1b[2J (mine.py, line"),
    ("mine.py:good mine.py:nan=0.5", "--reward mine.py:nan: it gave nan at good.jsonl:"),
]

# ---------------------------------------------------------------------------------------------------------------------
# The world, and what is held of every row
# ---------------------------------------------------------------------------------------------------------------------


def fill(folder: Path) -> None:
    """Put into an empty folder all that the rows name. benchmarks/trial.py does so too."""
    random_model().save_pretrained(folder / "m")
    character_tokenizer().save_pretrained(folder / "m")
    write_questions(folder / "good.jsonl", GOOD)
    (folder / "link.jsonl").symlink_to("good.jsonl")
    write_questions(folder / "few.jsonl", GOOD[:4])
    write_questions(folder / "copies.jsonl", GOOD[:1] * 30)
    unreadable = [{"problem": f"{n}?", "answer": "\\frac{1"} for n in range(3)]
    write_questions(folder / "some-unreadable.jsonl", GOOD[:4] + unreadable)
    write_questions(folder / "unsolved.jsonl", [{"problem": q["problem"], "answer": q["answer"]} for q in GOOD])
    for name, content, _ in DATA:
        (folder / name).write_bytes(content)
    for name, change, _ in EARLY + LATE:
        shutil.copytree(folder / "m", folder / name)
        change(folder / name)
    for name in ("run", "early-run"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text('{"learning_rate": 1}')
        (folder / name / "metrics.jsonl").write_text('{"step": 1}\n')
    shutil.copytree(folder / "m", folder / "run" / "model")
    (folder / "proj" / "model").mkdir(parents=True)
    (folder / "proj" / "config.json").write_text("[]")
    (folder / "bare").mkdir()
    (folder / "dead").symlink_to("nowhere-at-all")
    (folder / "endless").symlink_to("endless")
    (folder / "cut.gguf").write_bytes(b"GGUF\3\0\0\0" + b"\xff" * 100)
    (folder / "page.gguf").write_text("<html>")
    (folder / "notes.txt").write_text("mine")
    (folder / "other.json").write_text('{"a": {"rows": []}}')
    (folder / "mine.py").write_text(MINE)
    (folder / "helper.py").write_text("\n\nimport not_installed\n")
    (folder / "syntax.py").write_text("def f(:\n")
    (folder / "exits.py").write_text("raise SystemExit(3)\n")
    (folder / "tabs.py").write_text("def f(texts, questions):\n\treturn [1.0]\n        texts\n")
    (folder / "empty.py").write_text("")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    fill(folder)
    return folder


@pytest.fixture(autouse=True)
def there(world, monkeypatch):
    """In the world, on a machine without GPU and network."""
    monkeypatch.chdir(world)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    offline = types.ModuleType("datasets")
    offline.__spec__ = importlib.machinery.ModuleSpec("datasets", None)

    def no_network(name):
        raise ConnectionError("Couldn't reach the Hub")

    offline.get_dataset_config_names = no_network
    monkeypatch.setitem(sys.modules, "datasets", offline)


def files_of(world: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(world)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in world.rglob("*")
        if path.is_file()
    }


def held(
    world, capsys, program: str, command: str, code: int, message: str, *, may_leave: frozenset[str] = frozenset()
):
    """The row, and what is held of each."""
    before, start = files_of(world), time.perf_counter()
    with pytest.raises(SystemExit) as stop:
        PROGRAMS[program](shlex.split(command))
    seconds, after = time.perf_counter() - start, files_of(world)
    for path in set(after) - set(before):
        (world / path).unlink()
    for folder in ("new", "runs"):
        shutil.rmtree(world / folder, ignore_errors=True)
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith(f"{program}.py: ")]
    assert len(lines) == 1, f"{stop.value!r} with code {stop.value.code!r} after {printed.err!r}"
    (said,) = lines
    assert message in said
    assert stop.value.code == code and code != 0
    assert "Traceback" not in printed.err and printed.err.rstrip().endswith(said)
    assert len(said) < 700, "a sentence, not a page"
    words = [word.split("=")[0].split(":")[0] for word in shlex.split(command)]
    named = [word for word in words if word and word in said]
    assert named or " is missing" in said or "is empty" in said, "it names a flag or a file of the command"
    assert {path: seen for path, seen in after.items() if path in before} == before, "what was there is as it was"
    assert {Path(path).name for path in set(after) - set(before)} <= may_leave
    assert seconds < 20  # a tenth of one, on a machine that has nothing else to do


@pytest.mark.parametrize(("command", "message"), FLAGS)
def test_a_flag_of_dagrpo(world, capsys, command, message):
    held(world, capsys, "dagrpo", command, 2, message)


@pytest.mark.parametrize(("command", "message"), EVALUATE_FLAGS)
def test_a_flag_of_evaluate(world, capsys, command, message):
    held(world, capsys, "evaluate", command, 2, message)


@pytest.mark.parametrize(("out", "message"), OUT)
def test_a_place_where_no_run_can_be(world, capsys, out, message):
    held(world, capsys, "dagrpo", f"--model m --data good.jsonl --out {out} {TINY}", 2, message)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("name", "message"), [(name, message) for name, _, message in DATA] + NO_FILE)
def test_data(world, capsys, program, name, message):
    out = "--out new" if program == "dagrpo" else "--out new.json"
    held(world, capsys, program, f"--model m --data {name} {out}", 1, message)


@pytest.mark.parametrize("flag", ["--anchors", "--eval-data"])
@pytest.mark.parametrize(("name", "message"), [(name, message) for name, _, message in DATA[:40:4]])
def test_anchors_and_held_out_questions_are_read_with_the_same_care(world, capsys, flag, name, message):
    message = message.replace("--data", flag)
    held(world, capsys, "dagrpo", f"--model m --data good.jsonl {flag} {name} --out new", 1, message)


@pytest.mark.parametrize(("command", "message"), TOO_LITTLE)
def test_too_little_data(world, capsys, command, message):
    held(world, capsys, "dagrpo", f"--model m {command} --out new", 1, message)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("name", "message"), [(name, message) for name, _, message in EARLY] + NO_MODEL)
def test_a_model_that_can_be_seen_to_be_none(world, capsys, program, name, message):
    out = "--out new" if program == "dagrpo" else "--out new.json"
    held(world, capsys, program, f"--model {name} --data good.jsonl {out}", 1, message)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("name", "message"), [(name, message) for name, _, message in LATE])
def test_a_model_that_cannot_be_loaded(world, capsys, program, name, message):
    out = "--out new" if program == "dagrpo" else "--out new.json"
    held(
        world,
        capsys,
        program,
        f"--model {name} --data good.jsonl {out}",
        1,
        message,
    )


@pytest.mark.parametrize(("sources", "message"), REWARDS)
def test_a_reward_that_is_not_there(world, capsys, sources, message):
    command = f"--model m --data good.jsonl --reward {sources} --anchors none --out new"
    held(world, capsys, "dagrpo", command, 1, message)


@pytest.mark.parametrize(("sources", "message"), REWARDS_THAT_FAIL)
def test_a_reward_that_fails(world, capsys, sources, message):
    command = f"--model m --data good.jsonl --reward {sources} --anchors none --out new {TINY} --max-new-tokens 6"
    left = frozenset({"config.json", ".lock", "metrics.jsonl", "evaluations.jsonl"})
    held(world, capsys, "dagrpo", command, 1, message, may_leave=left)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("scores", "--scorer mine.py:scores: at good.jsonl:"),
        (
            "scores_raise",
            "--scorer mine.py:scores_raise: it raised KeyError: 'nowhere' (mine.py, line 47) at good.jsonl:",
        ),
        ("few", "--scorer mine.py:few: it gave 1 rows for 2 questions"),
    ],
)
def test_a_scorer_that_fails(world, capsys, function, message):
    command = f"--model m --data good.jsonl --reward mine.py:differing --scorer mine.py:{function} --anchors none"
    left = frozenset({"config.json", ".lock", "metrics.jsonl", "evaluations.jsonl"})
    held(world, capsys, "dagrpo", f"{command} --out new {TINY} --max-new-tokens 6", 1, message, may_leave=left)


@pytest.mark.parametrize(
    ("program", "command", "message"),
    [
        (
            "dagrpo",
            "--model m --data good.jsonl --max-new-tokens 999 --out new",
            "--max-new-tokens 999: no question fits",
        ),
        (
            "evaluate",
            "--model m --data good.jsonl --max-new-tokens 999",
            "good.jsonl: --max-new-tokens 999: no question",
        ),
        ("dagrpo", "--model m --data good.jsonl --system x --out new", "the tokenizer has none: leave them out"),
        ("evaluate", "--model m --data good.jsonl --system x", "the tokenizer has none: leave them out"),
    ],
)
def test_what_does_not_fit_the_model(world, capsys, program, command, message):
    held(world, capsys, program, command, 1, message, may_leave=frozenset({"config.json", ".lock", "metrics.jsonl"}))


@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_while_the_model_is_loaded(world, capsys, monkeypatch, program):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    module = sys.modules["rollout"]
    monkeypatch.setattr(module, "load", interrupted)
    with pytest.raises(SystemExit) as stop:
        PROGRAMS[program](shlex.split("--model m --data good.jsonl" + (" --out new" if program == "dagrpo" else "")))
    shutil.rmtree(world / "new", ignore_errors=True)
    assert stop.value.code == 130 and capsys.readouterr().err.splitlines()[-1].startswith(f"{program}.py: ")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_mistake_of_the_program_has_a_traceback(world, monkeypatch, program):
    monkeypatch.setattr(sys.modules["rollout"], "load", lambda *_, **__: {}["a bug"])
    with pytest.raises(KeyError, match="a bug"):
        PROGRAMS[program](shlex.split("--model m --data good.jsonl" + (" --out new" if program == "dagrpo" else "")))
    shutil.rmtree(world / "new", ignore_errors=True)


# ---------------------------------------------------------------------------------------------------------------------
# What is taken, and said
# ---------------------------------------------------------------------------------------------------------------------

TAKEN = [
    ("bom.jsonl", b"\xef\xbb\xbf" + jsonl(), "", []),
    ("crlf.jsonl", jsonl().replace(b"\n", b"\r\n"), "", []),
    ("cr.jsonl", jsonl().replace(b"\n", b"\r"), "", []),
    ("no-end.jsonl", jsonl()[:-1], "", []),
    ("numbers.jsonl", jsonl(with_answer("72"), with_answer("1.50").replace(b"1+1", b"x")), "", []),
    ("controls.jsonl", jsonl({"problem": "a\x1b[2J\0b", "answer": "1", "level": "\x1b[2J"}), "", []),
    ("extra.jsonl", jsonl({**SOLVED, "id": [1], "tags": {"a": None}}), "", []),
    (
        "twice.jsonl",
        jsonl(SOLVED, SOLVED),
        "",
        ["1 questions repeat another one (twice.jsonl:3 that of twice.jsonl:2)"],
    ),
    (
        "ids.jsonl",
        jsonl({**SOLVED, "id": 1}, {"problem": "?", "answer": "1", "id": 1}),
        "",
        ["1 questions have the `id` of another one (ids.jsonl:3 that of ids.jsonl:2): ids are not used."],
    ),
    (
        "gold.jsonl",
        jsonl({"problem": "?", "answer": "\\frac{1"}),
        "",
        ["1 questions left out: their gold answer cannot"],
    ),
    (
        "bad.jsonl",
        jsonl(b"{", {"problem": "?"}, b"[", 5),
        "--skip-bad",
        [
            "bad.jsonl:2: left out, this line is not JSON",
            "bad.jsonl:3: left out, the field `answer`",
            "bad.jsonl:4: left out",
            "bad.jsonl: 4 of 6 lines left out (--skip-bad).",
        ],
    ),
    ("bad-wide.jsonl", jsonl(b"x" * 3_000_000), "--skip-bad", ["bad-wide.jsonl: 1 of 3 lines left out (--skip-bad)."]),
    ("bad-latin.jsonl", jsonl(b"\xe9"), "--skip-bad", ["bad-latin.jsonl: 1 of 3 lines left out (--skip-bad)."]),
    (
        "bad-pair.jsonl",
        jsonl(SOLVED, {**SOLVED, "answer": "3"}),
        "--skip-bad",
        ["2 questions left out: their copies have other answers (--skip-bad)."],
    ),
]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("name", "content", "flags", "said"), TAKEN, ids=[row[0] for row in TAKEN])
def test_what_is_taken_is_taken_by_both_and_said(world, capsys, program, name, content, flags, said):
    (world / name).write_bytes(content)
    write_questions(world / "held.jsonl", [{"problem": "held?", "answer": "1"}])
    if program == "dagrpo":
        flags += f" --method grpo --eval-data held.jsonl --out new {TINY.replace(' --hold-out 1', '')}"
    PROGRAMS[program](shlex.split(f"--model m --data {name} {flags} --max-new-tokens 3"))
    printed = capsys.readouterr().out
    shutil.rmtree(world / "new", ignore_errors=True)
    assert "\x1b" not in printed and "\0" not in printed
    for line in said:
        assert line in " ".join(printed.split()), "lines are broken at 80 columns"


def test_silent_reductions_are_said(world, capsys):
    """Held-out questions fewer than asked for; rewards that are no per cent; each function by its name."""
    command = f"--model m --data good.jsonl --reward mine.py:good=2 --anchors none --out new {TINY} --max-new-tokens 6"
    dagrpo.main(shlex.split(command.replace("--hold-out 1", "--hold-out 1000")))
    printed = capsys.readouterr().out
    records = [json.loads(line) for line in (world / "new" / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(world / "new")
    assert "--hold-out 1000: only 2 questions are held out, a fifth of the data." in printed
    held_out = [line for line in printed.splitlines() if line.startswith(("held out", "all", "level"))]
    assert len(held_out) >= 4 and not any("%" in line for line in held_out)
    assert records[-1]["reward"] == pytest.approx(2 * records[-1]["reward/good"])


def test_a_negative_reward_is_not_wrong_and_not_a_per_cent(world, capsys):
    (world / "below.py").write_text("def zero(texts, questions):\n    return [-1e3 - len(text) for text in texts]\n")
    dagrpo.main(
        shlex.split(
            f"--model m --data good.jsonl --reward below.py:zero --anchors none --out new {TINY} --max-new-tokens 6"
        )
    )
    printed = capsys.readouterr().out
    shutil.rmtree(world / "new")
    assert "held out at step 0: reward -1" in printed and "accuracy" not in printed


def test_a_model_with_code_of_its_own_runs_it_when_told_to(world, capsys):
    """The code makes a file, and has no model to offer."""
    with pytest.raises(SystemExit):
        evaluate.main(shlex.split("--model own-code --data good.jsonl --trust-remote-code"))
    assert (world / "executed").exists()
    (world / "executed").unlink()


# ---------------------------------------------------------------------------------------------------------------------
# As processes
# ---------------------------------------------------------------------------------------------------------------------


def process(world: Path, program: str, command: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / f"{program}.py"), *shlex.split(command)],
        cwd=world, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("program", "command", "code", "message"),
    [
        ("dagrpo", "--lr 1", 2, "dagrpo.py: --lr: there is no such flag: it is --learning-rate here."),
        (
            "dagrpo",
            "--model gpt-wombat --data good.jsonl --out new",
            1,
            "neither a folder nor a model that the Hub gives",
        ),
        ("evaluate", "--model m --data surrogate.jsonl", 1, "evaluate.py: surrogate.jsonl:2: `problem` has half a"),
        ("evaluate", "--model nan --data good.jsonl", 1, "evaluate.py: --model nan: 1 of its 27 tensors hold NaN"),
        (  # not inside pytest, of which more could fail at the end of the stack
            "dagrpo",
            f"--model m --data good.jsonl --reward mine.py:recurses --anchors none --out new {TINY} --max-new-tokens 6",
            1,
            "dagrpo.py: --reward mine.py:recurses: it raised RecursionError: maximum recursion depth",
        ),
    ],
)
def test_a_process_ends_in_one_line(world, program, command, code, message):
    running = process(world, program, command)
    _, printed = running.communicate(timeout=120)
    shutil.rmtree(world / "new", ignore_errors=True)
    assert running.returncode == code and "Traceback" not in printed and message in printed.splitlines()[-1]


def test_ctrl_c_in_an_evaluation_ends_in_one_line_and_130(world):
    running = process(world, "evaluate", "--model m --data good.jsonl --samples 5000 --max-new-tokens 200 --out r.json")
    assert running.stdout is not None
    running.stdout.readline()  # the head of the table: the model is loaded
    running.send_signal(signal.SIGINT)
    _, printed = running.communicate(timeout=120)
    said = printed.splitlines()[-1]
    assert running.returncode == 130 and "Traceback" not in printed
    left = world / "r.json.part.jsonl"
    if "answers are in" in said:  # else it came before the first
        assert said.endswith("the same command goes on from there.") and left.exists()
        left.unlink()
    else:
        assert said.endswith("evaluate.py: interrupted.")
    assert not list(world.glob("r.json*"))
