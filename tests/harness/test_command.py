"""The command line: one sentence for what a user can mend, a traceback for what only a programmer can."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import evaluate
from harness import report
from harness.command import OF_EVALUATION, OF_TRAINING, ConfigError, flag_name, one_sentence, printable, unknown
from harness.config import Config, parse
from policy.model import ModelError
from questions import DataError

NAMES = [flag_name(name) for name in Config.__dataclass_fields__]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("no"), 2),
        (DataError("no"), 1),
        (ModelError("no"), 1),
        (NotImplementedError("no"), 1),
        (FloatingPointError("no"), 1),
        (OSError(28, "no"), 1),
        (torch.OutOfMemoryError("no"), 1),
        (KeyboardInterrupt("Stopped after step 3."), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_a_user_can_mend_ends_in_one_line_on_stderr(error, code, capsys):
    with pytest.raises(SystemExit) as stop, one_sentence("program.py"):
        raise error
    printed = capsys.readouterr()
    assert stop.value.code == code and printed.out == ""
    assert printed.err == f"{stop.value}\n" and printed.err.startswith("program.py: ")


def test_an_error_of_a_file_is_its_name_and_what_is_wrong(capsys):
    with pytest.raises(SystemExit), one_sentence("program.py"):
        Path("/nowhere/x").read_text()
    with pytest.raises(SystemExit), one_sentence("program.py"):
        raise OSError("runs/x/checkpoints: make room.")
    assert capsys.readouterr().err == (
        "program.py: /nowhere/x: No such file or directory.\nprogram.py: runs/x/checkpoints: make room.\n"
    )


def test_pytorchs_page_about_a_full_gpu_is_one_sentence_and_what_to_do(capsys):
    page = (
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB of which 5.50 MiB is "
        "free. Process 1 has 79.10 GiB memory in use. If reserved but unallocated memory is large try setting "
        "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
    )
    error = torch.OutOfMemoryError(page)
    error.add_note("Saved after step 3; go on with: ...")
    with pytest.raises(SystemExit), one_sentence("program.py"):
        raise error
    assert capsys.readouterr().err == (
        "program.py: the GPU has no room for another 20.00 MiB. Does another program use it (nvidia-smi)? If not, "
        "lower --max-new-tokens, or take a smaller model. Saved after step 3; go on with: ...\n"
    )


@pytest.mark.parametrize(
    "kind", [TypeError, KeyError, IndexError, RuntimeError, ValueError, AttributeError, ImportError]
)
def test_a_mistake_of_the_program_keeps_its_traceback(kind):
    with pytest.raises(kind), one_sentence("program.py"):
        raise kind("a bug")


def test_nothing_that_is_printed_moves_the_cursor_of_a_terminal(capsys):
    """Texts of data and models may hold sequences that clear the screen, or turn a line round."""
    evil = "a\x1b[2Jb\x07\x9b3\u202ec\ud800\r\u2028"
    said = printable(evil)
    assert said == "a\\x1b[2Jb\\x07\\x9b3\\u202ec\\ud800\\r\\u2028"
    assert printable("one\n\ttwo α 漢 é 😀") == "one\n\ttwo α 漢 é 😀"
    report.say(evil)
    with pytest.raises(SystemExit), one_sentence("program.py"):
        raise DataError(evil)
    assert capsys.readouterr() == (f"{said}\n", f"program.py: {said}\n")


# --- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--learnin-rate", "--learning-rate"),
        ("--learning_rate", "--learning-rate"),
        ("--Steps", "--steps"),
        ("–steps", "--steps"),
        ("-steps", "--steps"),
        ("--group-sise=4", "--group-size"),
        ("--evalsamples", "--eval-samples"),
    ],
)
def test_a_mistyped_flag_is_recognized(typed, meant):
    assert unknown(typed, NAMES, OF_TRAINING).endswith(f"Did you mean {meant}?")


@pytest.mark.parametrize("typed", ["--wombat", "--foo", "--resume-from", "--x", "--loss", "--quiet"])
def test_a_flag_like_no_other_gets_no_suggestion(typed):
    """`--resume` was told `--resample`."""
    assert unknown(typed, NAMES, OF_TRAINING) == f"{typed}: there is no such flag. --help lists them all."


@pytest.mark.parametrize(("known", "elsewhere"), [("training", OF_TRAINING), ("evaluation", OF_EVALUATION)])
def test_what_another_name_is_said_to_be_here_is_a_flag_here(known, elsewhere, capsys):
    with pytest.raises(SystemExit):
        parse(["--help"]) if known == "training" else evaluate.options_of(["--help"])
    words = {word.strip(",.;[]") for word in capsys.readouterr().out.split()}
    for name, said in elsewhere.items():
        named = [word.strip(".,;:=") for word in said.split() if word.startswith("--")]
        assert f"--{name}" not in words, f"--{name} is a flag of this program"
        assert all(flag in words for flag in named), f"--{name}: {said}"
