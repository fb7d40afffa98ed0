r"""Is an answer right? One text, and how `grade` works through a batch."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import verify
from verify import grading
from verify.extraction import chosen
from verify.worker import WORKER_MEMORY

ROOT = Path(verify.__file__).parents[1]


def test_joined_boxes_answer_a_gold_with_several_values():
    text = r"The solutions are \boxed{1} and \boxed{-2}."
    assert verify.is_correct(text, "-2, 1")
    assert not verify.is_correct(text, "1")
    assert verify.grade([text, text], ["-2, 1", "-2, 3"], workers=0) == [True, False]
    assert not verify.is_correct(r"First \boxed{1}. It follows that the other one is \boxed{-2}.", "-2, 1")


def test_choices_are_letters():
    choices = ["Paris", "Rome", "12"]
    assert verify.is_correct(r"It is \boxed{B}", "B", choices)
    assert verify.is_correct("The answer is (B).", "B", choices)
    assert not verify.is_correct(r"\boxed{C}", "B", choices)
    assert not verify.is_correct("", "B", choices)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("At first A seems right, but it must be B, clearly", "B"),  # the last one that stands alone
        ("The answer is B and C.", None),
        ("Not C, so \\boxed{B", None),  # cut off
        ("<think> C or rather B", None),
    ],
)
def test_what_a_text_chooses(text, letter):
    for gold in ("A", "B", "C"):
        assert verify.is_correct(text, gold, ["Paris", "Rome", "Oslo"]) == (gold == letter)


CITIES = ["Paris", "Rome", "12"]
NAMED = {
    "its text, or its number": [
        (r"\boxed{Rome}", "B"),
        (r"\boxed{\text{rome.}}", "B"),
        (r"so \boxed{12.0}", "C"),
        ("The answer is: Paris", "A"),
    ],
    "its words in the answer or in the final sentence": [
        ("The answer is the city of Rome.", "B"),
        ("Paris is in France, so A is wrong. The capital is Rome.", "B"),
        ("I take Rome, and this is B.", "B"),
    ],
    "a letter before its text": [("B. Paris", "B"), (r"\boxed{A}, which is Rome", "A")],
    "nothing, where it names several, denies one, or was cut off": [
        ("The capital of Italy is Rome, and that of France is Paris.", None),
        ("It is not Rome.", None),
        (r"so it is \boxed{Rome", None),
        ("<think>It is Rome.", None),
    ],
}


@pytest.mark.parametrize("kind", NAMED)
def test_a_choice_is_known_by(kind):
    for text, letter in NAMED[kind]:
        assert chosen(text, CITIES) == letter, text


def test_of_choices_that_are_alike_the_one_that_is_meant():
    """A letter inside of a name is no choice; of two whose words contain each other the longer counts."""
    assert chosen(r"\boxed{Vitamin C}", ["Vitamin A", "Vitamin D", "vitamin B", "Vitamin C"]) == "D"
    assert chosen("So it is acid rain.", ["rain", "acid rain", "snow"]) == "B"
    assert chosen(r"\boxed{A and B only}", ["A only", "B only", "A and B only"]) == "C"
    assert chosen(r"\boxed{-5}", ["5", "-5"]) == "B" and chosen(r"\boxed{x-1}", ["x + 1", "x - 1"]) == "B"
    assert chosen(r"\boxed{Rome}", ["Rome", "Rome"]) is None


@pytest.mark.parametrize("gold", ["B", "b", " b ", "(B)", "B.", "Option B"])
def test_the_gold_of_choices_is_a_letter_however_it_is_written(gold):
    assert verify.is_correct("The answer is (B).", gold, ["Paris", "Rome"])
    assert not verify.is_correct("The answer is (A).", gold, ["Paris", "Rome"])


@pytest.mark.parametrize("gold", ["", "  "])
def test_an_empty_gold_of_choices_cannot_be_graded(gold):
    """Not even where a text chooses nothing either."""
    assert verify.grade(["The answer is (B).", "nothing"], [gold] * 2, [["Paris", "Rome"]] * 2) == [None, None]


def test_tolerance_is_an_argument():
    assert not verify.is_correct("so 3.14", r"\pi")
    assert verify.is_correct("so 3.14", r"\pi", rel_tol=1e-3)
    assert not verify.is_correct("so 3.14", r"\pi", rel_tol=1e-5)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_has_one_tolerance_or_one_for_each_text(workers):
    """Plain numbers, and what processes compare; equal answers under different tolerances are different comparisons."""
    texts, golds = ["so 3.14", "so 3.14", "so 0.333", "so 0.333"], [r"\pi", r"\pi", "0.3333333333", "0.3333333333"]
    assert verify.grade(texts, golds, workers=workers) == [False] * 4
    assert verify.grade(texts, golds, rel_tol=0.01, workers=workers) == [True] * 4
    assert verify.grade(texts, golds, rel_tol=[0.01, 0, 0, 0.01], workers=workers) == [True, False, False, True]
    with pytest.raises(ValueError):
        verify.grade(texts, golds, rel_tol=[0.01], workers=workers)


# ---------------------------------------------------------------------------------------------------------------------
# Grading a batch
# ---------------------------------------------------------------------------------------------------------------------

TEXTS = [
    r"\boxed{\frac{1}{2}}",
    r"\boxed{x+1}",
    r"\boxed{(1,2)}",
    r"\boxed{3}",
    "nothing",
    r"\boxed{B}",
    r"\boxed{\{2,1\}}",
]
GOLDS = ["0.5", "1+x", "(2,1)", "3.0", "7", "B", r"\{1,2\}"]
CHOICES = [None, None, None, None, None, ["yes", "no"], None]
VERDICTS = [True, True, False, True, False, True, True]


@pytest.mark.parametrize("workers", [0, 1, 2, None])
def test_grade_gives_the_same_verdicts_in_order_for_any_number_of_workers(workers):
    assert verify.grade(TEXTS * 30, GOLDS * 30, CHOICES * 30, workers=workers) == VERDICTS * 30


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "gold",
    ["", " ", r"\frac{1", r"\boxed{5", r"\begin{pmatrix} 5", "5 +", r"\frac{1}{0}",
     "1" * 6_000, "(" * 2_000 + "1" + ")" * 2_000,
     r"10^{10^{10}}", r"\unknown{3}"],
)  # fmt: skip
def test_grade_gives_none_where_the_gold_cannot_be_read(gold, workers):
    assert verify.grade([r"\boxed{1}", r"\boxed{" + gold + "}", ""], [gold] * 3, workers=workers) == [None] * 3


@pytest.mark.parametrize("gold", ["72", r"\text{Monday}", "no solution", "(A)", r"x \equiv 3 \pmod{7}", r"\emptyset"])
def test_a_readable_gold_is_never_none(gold):
    assert verify.grade([f"\\boxed{{{gold}}}", r"\boxed{-99}", ""], [gold] * 3) == [True, False, False]


def test_lists_of_unequal_length_are_an_error():
    with pytest.raises(ValueError, match=r"zip\(\)"):
        verify.grade(["1", "2"], ["1"])


def test_workers_are_kept_for_the_next_call():
    verify.grade([r"\boxed{x}"], ["y"], workers=1)
    before = [worker.process.pid for worker in grading.idle_workers]
    verify.grade([r"\boxed{x}"], ["y"], workers=1)
    assert [worker.process.pid for worker in grading.idle_workers] == before
    assert before


def test_plain_numbers_and_choices_need_no_process(monkeypatch):
    monkeypatch.setattr(grading, "compare_all", lambda comparisons, *_: [pytest.fail("called")] if comparisons else [])
    assert verify.grade([r"\boxed{3}", "so 4", r"\boxed{A}"], ["3.0", "5", "A"], [None, None, ["x", "y"]]) == [
        True,
        False,
        True,
    ]


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be halted here")
def test_a_worker_that_does_not_answer_is_killed_and_replaced():
    verify.grade([r"\boxed{x}"], ["y"], workers=1)
    halted = grading.idle_workers[-1]
    os.kill(halted.process.pid, signal.SIGSTOP)
    start = time.perf_counter()
    verdicts = verify.grade([r"\boxed{a}", r"\boxed{2b}"], ["a", "b + b"], workers=1, time_limit=0.5)
    assert verdicts == [False, True]  # the first one ran out of time, the second one got a new process
    assert 0.5 <= time.perf_counter() - start < 20
    assert halted.process.poll() is not None
    assert halted not in grading.idle_workers


def test_a_worker_that_died_is_replaced():
    verify.grade([r"\boxed{x}"], ["y"], workers=1)
    grading.idle_workers[-1].process.kill()
    assert verify.grade([r"\boxed{a}", r"\boxed{2b}"], ["a", "b + b"], workers=1)[1] is True


def test_kept_workers_that_died_cost_no_verdict():
    verify.grade([r"\boxed{2x}"] * 80, [f"x + {n}x" for n in range(80)], workers=2)
    assert len(grading.idle_workers) >= 2
    for worker in grading.idle_workers:
        worker.process.kill()
        worker.process.wait()
    assert verify.grade([r"\boxed{a}", r"\boxed{2b}"], ["a + 0", "b + b"], workers=1) == [True, True]


def test_a_kept_worker_that_dies_as_it_is_taken_costs_no_verdict(monkeypatch):
    """A new process makes the comparison in its place."""
    dead = grading.Worker()
    dead.process.kill()
    dead.process.wait()
    monkeypatch.setattr(grading, "idle_worker", lambda: dead)
    assert grading.compare_all([(("x+1",), "1+x", 0.0)], 1, 30.0) == [True]


@pytest.fixture
def hands(monkeypatch):
    """Who would have worked, and with what; nobody does."""
    called = []
    monkeypatch.setattr(grading, "work", lambda *arguments: called.append(arguments))
    return called


def test_without_workers_answers_are_compared_here(hands):
    assert verify.grade([r"\boxed{x+1}"], ["1+x"], workers=0) == [True] and hands == []


@pytest.mark.parametrize(("comparisons", "processes"), [(1, 1), (32, 1), (33, 2), (1_000, 8)])
def test_there_are_no_more_processes_than_pay_off(comparisons, processes, hands, monkeypatch):
    """One for each 32 comparisons, up to the number of cores."""
    monkeypatch.setattr(grading.os, "cpu_count", lambda: 8)
    grading.compare_all([(("x",), str(number), 0.0) for number in range(comparisons)], None, 1.0)
    assert len(hands) == processes


def test_an_interrupt_stops_the_workers_that_are_busy(monkeypatch):
    class Interrupted(threading.Thread):
        def join(self, timeout=None):
            super().join(timeout)
            raise KeyboardInterrupt

    class Busy:
        stopped = False

        def stop(self):
            self.stopped = True

    worker = Busy()
    monkeypatch.setattr(grading, "work", lambda comparisons, verdicts, turns, busy, limit: busy.append(worker))
    monkeypatch.setattr(grading.threading, "Thread", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        grading.compare_all([(("x",), "y", 0.0)], 1, 1.0)
    assert worker.stopped


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_a_busy_worker_ends_with_the_program_that_started_it():
    tail = "".join(rf"\sin(x+{n}y)\tan(y+{n}z)" for n in range(2))
    answer = ", ".join(rf"\sin^2(x+{n}yz){tail}" for n in range(1, 29))
    gold = ", ".join(rf"(1-\cos^2(x+{n}yz)){tail}" for n in range(28, 0, -1))  # it takes seconds to find the pairs
    code = f"import verify; verify.grade([r'\\boxed{{{answer}}}'], [r'{gold}'], workers=1, time_limit=99)"
    program = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    wait_for(lambda: children(program.pid))
    (worker,) = children(program.pid)
    time.sleep(1.5)  # until it has read its case
    program.kill()
    program.wait()
    wait_for(lambda: not Path(f"/proc/{worker}").exists(), seconds=3)


def children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended in the meantime
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


def wait_for(condition, seconds: float = 20) -> None:
    deadline = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < deadline
        time.sleep(0.05)


def test_no_more_workers_are_kept_than_there_are_cores():
    verify.grade([r"\boxed{2x}"] * 40, [f"x + {n}x" for n in range(40)], workers=8)
    assert 0 < len(grading.idle_workers) <= (os.cpu_count() or 1)
    assert grading.live_workers == set(grading.idle_workers)


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="limits are looked up in /proc")
def test_the_memory_of_a_worker_is_limited():
    verify.grade([r"\boxed{x}"], ["y"], workers=1)
    limits = Path(f"/proc/{grading.idle_workers[-1].process.pid}/limits").read_text().splitlines()
    (address_space,) = [line for line in limits if line.startswith("Max address space")]
    assert address_space.split()[3] == str(WORKER_MEMORY)


def test_a_negative_number_of_workers_is_an_error():
    with pytest.raises(ValueError, match="workers = -1"):
        verify.grade(["1"], ["1"], workers=-1)


def test_grade_works_from_threads():
    found: queue.Queue[list[bool | None]] = queue.Queue()
    threads = [
        threading.Thread(target=lambda: found.put(verify.grade(TEXTS, GOLDS, CHOICES, workers=1))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found.get_nowait() for _ in threads] == [VERDICTS] * 4


def test_a_script_without_a_main_guard_can_grade_and_ends():
    """Workers are started as commands, so that they do not run the user's script again."""
    code = r"import verify; print(verify.grade([r'\boxed{2x}'], ['x + x'], workers=1))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[True]", "")


@pytest.mark.parametrize("path", ["", os.pathsep], ids=["no PYTHONPATH", "PYTHONPATH with an empty entry"])
def test_a_worker_takes_no_module_from_the_working_directory(path, monkeypatch, tmp_path):
    for name in ("sympy", "json", "verify"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError")
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.chdir(tmp_path)
    worker = grading.Worker()
    try:
        assert worker.compare((("2x",), "x + x", 0.0), 20) is True
    finally:
        worker.stop()


def test_a_worker_gets_of_the_environment_only_what_it_needs(monkeypatch):
    """It reads texts of models; the user's keys are none of its business."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/one", "", "/two"]))
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PYTHONSTARTUP"):
        monkeypatch.setenv(name, "secret")
    found = grading.environment()
    assert found["PYTHONPATH"] == os.pathsep.join([str(ROOT), "/one", "/two"]) and found["PATH"] == os.environ["PATH"]
    assert "secret" not in found.values() and {*found} <= {*grading.NEEDED, "PYTHONPATH"}
    assert grading.grade(["\\boxed{x+1}"], ["1+x"], workers=1) == [True]


def test_neither_the_package_nor_a_worker_imports_torch():
    code = "import sys, verify, verify.worker; print('verify.worker' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("True False", "")


def test_the_package_does_not_import_the_program_of_its_workers():
    code = "import sys, verify; print('verify.worker' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("False", "")


def test_a_worker_that_a_person_starts_says_what_it_is():
    command = [sys.executable, "-m", "verify.worker"]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and "verify.grade" in done.stderr


def test_a_worker_whose_program_was_killed_while_it_started_ends_without_a_word():
    command = [sys.executable, "-m", "verify.worker", "--worker"]
    worker = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    worker.stdout.close()  # the other end stays open: that alone would end it
    assert worker.stderr.read() == "" and worker.wait(60) == 0


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no pseudo-terminals here")
def test_a_worker_does_not_read_from_a_terminal():
    ours, its = os.openpty()
    try:
        command = [sys.executable, "-m", "verify.worker", "--worker"]
        done = subprocess.run(command, cwd=ROOT, stdin=its, capture_output=True, text=True, timeout=60)
    finally:
        os.close(ours)
        os.close(its)
    assert (done.returncode, done.stdout) == (1, "")
    assert "verify.grade" in done.stderr


def test_where_no_process_can_start_answers_are_compared_here(monkeypatch):
    def refuse() -> None:
        raise OSError("not allowed")

    monkeypatch.setattr(grading, "idle_workers", [])
    monkeypatch.setattr(grading, "Worker", refuse)
    with pytest.warns(UserWarning, match="not allowed"):
        assert verify.grade([r"\boxed{2x}"], ["x + x"], workers=1) == [True]


# ---------------------------------------------------------------------------------------------------------------------
# Safety
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch {}')",
        "open('{}', 'w')",
        r"\boxed{{__import__('pathlib').Path('{}').touch()}}",
        "().__class__.__base__.__subclasses__()",
    ],
)
def test_text_of_a_model_is_never_run(text, tmp_path):
    target = tmp_path / "touched"
    code = text.replace("{}", str(target)).replace("{{", "{").replace("}}", "}")
    assert not verify.is_correct(code, "7.25")
    assert not verify.is_equivalent(code, "7.25")
    assert verify.grade([code], ["x"]) == [False]
    assert not target.exists()


@pytest.mark.parametrize(
    "answer",
    [
        "10^{10^{10}}",
        "9" * 5_000,
        "(" * 10_000 + "1" + ")" * 10_000,
        "9^9^9^9",
        "((x+y)^12)^12",
        "-" * 900 + "1",
        r"\sqrt{" * 300,
        r"\frac{" * 300,
        "99!" * 50,
        "((5!)!d)!",
        "((x!)!)!",
        r"\binom{(x!)!}{x^x}",
        "x^{x^{x^{x^x}}}",
        "e^{e^{e^{e^x}}}",
        "(a+b+c+d+e+f+g+h)^12*(a+b+c+d+e+f+g+h)^12",
        r"\prod_{i=1}^{99}" * 50 + "9",
        r"\sum_{k=1}^{200} 9^{9^k}",
        r"\log" * 20 + "0.3",
        r"\begin{pmatrix}" + "1&" * 700 + r"1\end{pmatrix}",
        "\x00\ud800",
    ],
)
def test_hostile_answers_end_quickly(answer):
    start = time.perf_counter()
    assert not verify.is_equivalent(answer, "7")
    assert not verify.is_correct(r"\boxed{" + answer + "}", "7")
    assert verify.grade([r"\boxed{" + answer + "}"], ["x"], workers=1) == [False]
    assert time.perf_counter() - start < 2
