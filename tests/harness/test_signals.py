"""Signals, closed pipes and full disks behind what is printed: the commands end in one line, and lose nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dagrpo
import harness.signals
from harness import checkpoint, report
from harness.command import one_sentence
from harness.signals import Interrupted, interrupt, signals_to

ROOT = Path(dagrpo.__file__).parent
HANGUP = getattr(signal, "SIGHUP", None)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), *([(HANGUP, 129)] if HANGUP else [])]
)
def test_a_signal_ends_a_command_in_one_line_with_128_and_its_number(number, code, capsys):
    before = signal.signal(number, signal.SIG_DFL)
    cleaned = []
    try:
        with pytest.raises(SystemExit) as stopped, one_sentence("program.py"):
            try:
                os.kill(os.getpid(), number)
                time.sleep(5)
            finally:
                cleaned.append("its part file")
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert stopped.value.code == code and cleaned
    assert capsys.readouterr().err == "program.py: interrupted.\n"


@pytest.mark.skipif(HANGUP is None, reason="there is no SIGHUP here")
def test_what_nohup_has_ignored_stays_ignored():
    """Python's own handler of SIGINT is another matter: it is taken."""
    before = signal.signal(HANGUP, signal.SIG_IGN)
    try:
        with signals_to(interrupt):
            os.kill(os.getpid(), HANGUP)
            time.sleep(0.01)
            with pytest.raises(Interrupted):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)
    finally:
        signal.signal(HANGUP, before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 7), (HANGUP, 7)])
def test_a_process_that_a_function_of_the_user_forks_has_no_part_in_the_handling(number, status, capfd):
    """A pool ends its processes by SIGTERM; Ctrl-C comes to them too, and the step that waits for them is finished."""
    asked = []
    before = signal.signal(HANGUP, signal.SIG_DFL)  # nohup would have it ignored
    with signals_to(lambda number, _: asked.append(number)):
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            os._exit(7 if not asked else 8)
        _, ended = os.waitpid(child, 0)
    signal.signal(HANGUP, before)
    assert os.waitstatus_to_exitcode(ended) == status
    assert capfd.readouterr().err == "" and asked == []


def test_a_pipe_that_nobody_reads_is_no_error_number(capsys):
    with pytest.raises(SystemExit) as stopped, one_sentence("program.py"):
        raise BrokenPipeError(32, "Broken pipe")
    assert stopped.value.code == 141
    assert capsys.readouterr().err == "program.py: interrupted: nobody reads any more what it prints.\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no disk here that is always full")
def test_a_full_disk_behind_what_is_printed_is_said_and_asks_the_run_to_end(monkeypatch, capsys):
    """As a signal does: the handler of a run waits for the end of the step, and what is said further goes nowhere."""
    asked = []
    with open("/dev/full", "w") as full, signals_to(lambda number, _: asked.append(number)):
        monkeypatch.setattr(sys, "stdout", full)
        report.say("step 1")
        report.say("step 2")
    assert asked == [13]
    assert capsys.readouterr().err == "what is printed cannot be written (No space left on device).\n"


# --- as processes ------------------------------------------------------------------------------------------------


def process(command: list[str], **options) -> subprocess.Popen[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, text=True, **options)


def test_a_run_whose_output_is_cut_off_ends_after_its_step_with_a_checkpoint(tmp_path):
    """python dagrpo.py | head"""
    run = "dagrpo.py --steps 500 --questions 2 --group-size 2 --max-new-tokens 8 --method grpo --eval-every 0"
    command = [*run.split(), "--no-eval-at-start", "--out", str(tmp_path / "run")]
    running = process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not running.stdout.readline().startswith("step   2/500"):
        assert running.poll() is None
    running.stdout.close()
    said = running.stderr.read()
    assert running.wait(timeout=60) == 141
    saved = checkpoint.newest(tmp_path / "run")[0].step
    assert said == (
        f"dagrpo.py: Stopped; saved after step {saved}. Go on with: python dagrpo.py --resume {tmp_path / 'run'}\n"
    ), "and no bar, since stderr is no terminal"
    assert 2 <= saved < 500


@pytest.mark.parametrize("program", ["dagrpo.py", "evaluate.py"])
def test_ctrl_c_while_pytorch_is_imported_ends_in_one_line(program, tmp_path):
    """It takes seconds. The module that is imported in its place sends the signal."""
    (tmp_path / "torch.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    command = (
        "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"sys.path[:0] = [{str(tmp_path)!r}]; sys.argv = [{program!r}]; "
        f"runpy.run_path({program!r}, run_name='__main__')"
    )
    running = process(["-c", command], stderr=subprocess.PIPE)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130 and said == f"{program}: interrupted.\n"


def test_the_modules_leave_signals_alone_where_they_are_imported():
    """By a notebook, or by these tests."""
    assert signal.getsignal(signal.SIGINT) is not harness.signals.end_at_once
