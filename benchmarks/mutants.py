"""Do the tests notice mistakes? mutations.py lists some: with each, in a copy of the checkout, a test must fail.

    python benchmarks/mutants.py                       all of them; exit status 1 where one survives
    python benchmarks/mutants.py --only scoring.py     those of one file, by its path; may be given several times
    python benchmarks/mutants.py --list                what there is, without a run
    python benchmarks/mutants.py --jobs 2              two at once, each in its copy

A mutation replaces `old`, which stands in its file just once, by `new`. One that changes nothing that can be seen has
its reason in `equivalent`, and is not run. The tests of a file stand in TESTS, in the order in which they run; where
they take longer than --time-limit seconds, the mutation counts as noticed. Those of scale/ need TRL (minutes each).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import multiprocessing
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from mutations import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent

SCALE = ["tests/scale/test_trl_data.py", "tests/scale/test_trl_dagrpo.py", "tests/scale/test_processes.py"]
TESTS: dict[str, list[str]] = {
    "dagrpo.py": [
        "tests/test_dagrpo.py",
        "tests/test_independent_step.py",
        "tests/harness/test_memory.py",
        "tests/harness/test_lora_runs.py",
    ],
    "scoring.py": ["tests/test_scoring.py", "tests/test_independent_step.py", "tests/test_rollout.py"],
    "rollout.py": ["tests/test_rollout.py", "tests/test_independent_step.py", "tests/test_anchors.py"],
    "anchors.py": ["tests/test_anchors.py", "tests/test_independent_step.py"],
    "harness/command.py": ["tests/harness/test_command.py", "tests/test_trial.py"],
    "questions.py": [
        "tests/test_questions.py",
        "tests/sources/test_fields.py",
        "tests/harness/test_eval_sets.py",
        "tests/test_anchors.py",
        "tests/test_dagrpo.py",
    ],
    "sources/faults.py": ["tests/sources/test_formats.py", "tests/sources/test_fields.py"],
    "sources/fields.py": ["tests/sources/test_fields.py", "tests/sources/test_formats.py"],
    "sources/formats.py": ["tests/sources/test_formats.py"],
    "sources/functions.py": ["tests/harness/test_rewards.py"],
    "sources/hub.py": ["tests/sources/test_hub.py"],
    "harness/mapping.py": ["tests/harness/test_mapping.py"],
    "harness/rewards.py": ["tests/harness/test_rewards.py"],
    "evaluate.py": ["tests/test_evaluate.py", "tests/harness/test_eval_sets.py", "tests/test_trial.py"],
    "policy/attention.py": ["tests/policy/test_attention.py"],
    "policy/checks.py": ["tests/policy/test_checks.py"],
    "policy/compiling.py": ["tests/policy/test_compiling.py"],
    "policy/decoding.py": ["tests/policy/test_decoding.py", "tests/test_rollout.py", "tests/policy/test_lora.py"],
    "policy/graphs.py": ["tests/policy/test_graphs.py"],
    "policy/lora.py": ["tests/policy/test_lora.py", "tests/harness/test_lora_runs.py"],
    "policy/optimizer.py": ["tests/policy/test_optimizer.py", "tests/harness/test_lora_runs.py"],
    "policy/refilling.py": ["tests/policy/test_refilling.py"],
    "policy/logprobs.py": ["tests/policy/test_logprobs.py", "tests/test_independent_step.py"],
    "policy/model.py": [
        "tests/policy/test_model.py",
        "tests/test_scoring.py",
        "tests/policy/test_logprobs.py",
        "tests/test_trial.py",
    ],
    "scorers/gradients.py": ["tests/scorers/test_gradients.py", "tests/test_scoring.py"],
    "scorers/tokens.py": ["tests/scorers/test_tokens.py", "tests/test_independent_step.py"],
    "scorers/judge.py": ["tests/scorers/test_judge.py"],
    "scorers/asking.py": ["tests/scorers/test_asking.py", "tests/scorers/test_judge.py"],
    "harness/answers.py": ["tests/harness/test_answers.py"],
    "harness/evaluation.py": [
        "tests/test_evaluate.py",
        "tests/harness/test_prompting.py",
        "tests/harness/test_eval_sets.py",
        "tests/test_trial.py",
    ],
    "harness/prompting.py": ["tests/harness/test_prompting.py"],
    "harness/benchmarks.py": ["tests/harness/test_benchmarks.py"],
    "harness/checkpoint.py": [
        "tests/harness/test_checkpoint.py",
        "tests/harness/test_memory.py",
        "tests/harness/test_runs.py",
        "tests/harness/test_lora_runs.py",
    ],
    "harness/learner.py": ["tests/test_dagrpo.py", "tests/harness/test_memory.py", "tests/harness/test_lora_runs.py"],
    "harness/memory.py": ["tests/harness/test_memory.py"],
    "harness/signals.py": ["tests/harness/test_signals.py"],
    "harness/runs.py": [
        "tests/harness/test_runs.py",
        "tests/harness/test_memory.py",
        "tests/harness/test_card.py",
        "tests/harness/test_lora_runs.py",
    ],
    "harness/card.py": ["tests/harness/test_card.py"],
    "harness/tracking.py": ["tests/harness/test_tracking.py"],
    "harness/limits.py": ["tests/harness/test_limits.py", "tests/harness/test_config.py"],
    "harness/config.py": ["tests/harness/test_config.py", "tests/test_independent_step.py"],
    "harness/compare.py": ["tests/harness/test_compare.py"],
    "harness/results.py": ["tests/harness/test_compare.py", "tests/harness/test_page.py"],
    "harness/samples.py": ["tests/harness/test_samples.py"],
    "harness/page.py": ["tests/harness/test_page.py"],
    "harness/page_data.py": ["tests/harness/test_page.py"],
    "harness/report.py": ["tests/harness/test_report.py", "tests/test_dagrpo.py"],
    "harness/task.py": [
        "tests/harness/test_task.py",
        "tests/harness/test_mapping.py",
        "tests/harness/test_eval_sets.py",
        "tests/scorers/test_judge.py",
        "tests/test_dagrpo.py",
    ],
    "scale/data.py": SCALE,
    "scale/groups.py": SCALE,
    "scale/ranks.py": SCALE,
    "scale/settings.py": SCALE,
    "scale/trl_dagrpo.py": SCALE,
    "verify/extraction.py": ["tests/verify/test_extraction.py", "tests/verify/test_grading.py"],
    "verify/grading.py": ["tests/verify/test_grading.py"],
    "verify/reading.py": ["tests/verify/test_reading.py"],
}


# ---------------------------------------------------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------------------------------------------------


def faults(mutants: list[Mutant]) -> list[str]:
    """What is wrong with the list itself: an `old` that is not there just once, a `new` that is no Python."""
    found = []
    for mutant in mutants:
        text = (ROOT / mutant.file).read_text(encoding="utf-8")
        count = text.count(mutant.old)
        if count != 1:
            found.append(f"{mutant.file}: `old` occurs {count} times, not once: {mutant.why}\n    {mutant.old!r}")
            continue
        if mutant.old == mutant.new:
            found.append(f"{mutant.file}: `new` is `old`: {mutant.why}")
        try:
            compile(text.replace(mutant.old, mutant.new), mutant.file, "exec")
        except SyntaxError as error:
            found.append(f"{mutant.file}: with `new` it is no Python ({error}): {mutant.why}")
    return found


def copy_of_checkout(folder: Path) -> Path:
    """The files that git has, and those that it does not ignore, in a folder."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def test_process(folder: str, files: list[str], output: str) -> None:
    """What a process does: pytest on the files of a copy, up to the first failure. Its exit status is pytest's."""
    os.setsid()  # so that what it starts can be ended with it
    os.chdir(folder)
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() not in (ROOT, ROOT / "benchmarks")]
    with open(output, "w", encoding="utf-8") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        import pytest

        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *files])
    os._exit(int(status))


def outcome(folder: Path, files: list[str], time_limit: float) -> tuple[str, str]:
    """(passed, failed, time or broken; the last lines of pytest) of the tests in a copy of the checkout."""
    log = folder / "mutants.log"
    process = CONTEXT.Process(target=test_process, args=(str(folder), files, str(log)))
    process.start()
    process.join(time_limit)
    late = process.is_alive()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]) if log.exists() else ""
    if late:
        return "time", tail
    # pytest: 0 all passed, 1 some failed, 2 stopped by an error of collection; all else is a fault of this tool.
    return {0: "passed", 1: "failed", 2: "failed"}.get(process.exitcode or 0, "broken"), tail


def tests_of(file: str, folder: Path) -> list[str]:
    return [name for name in TESTS[file] if (folder / name).is_file()]


# What takes long to import is imported once, in the process from which those of the tests are forked.
FAMILIES = ("qwen2", "qwen3", "llama", "mistral", "gemma2", "cohere", "falcon", "granite", "gpt2", "mamba")
PRELOADED = [
    "pytest",
    "hypothesis",
    "numpy",
    "sympy",
    "torch",
    "torch._dynamo",
    "transformers.models.auto.modeling_auto",
]
PRELOADED += [f"transformers.models.{name}.modeling_{name}" for name in FAMILIES]
CONTEXT = multiprocessing.get_context("forkserver")


def main() -> None:
    parser = argparse.ArgumentParser(description="Apply mistakes one at a time; a test must fail for each.")
    parser.add_argument("--only", metavar="FILE", action="append", help="mutations of this file only")
    parser.add_argument("--why", metavar="TEXT", help="mutations only whose `why` has this text")
    parser.add_argument("--jobs", type=int, default=1, help="mutations at once")
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds for the tests of one mutation")
    parser.add_argument("--list", action="store_true", help="print the mutations and stop")
    options = parser.parse_args()
    chosen = [
        mutant
        for mutant in MUTANTS
        if (not options.only or mutant.file in options.only) and (options.why or "") in mutant.why
    ]
    wrong = faults(chosen)
    for fault in wrong:
        print(fault)
    if options.list or wrong:
        for mutant in chosen if options.list else []:
            print(
                f"{mutant.file:<22} {mutant.why}"
                + (f"  [equivalent: {mutant.equivalent}]" if mutant.equivalent else "")
            )
        print(f"{len(chosen)} mutations, {sum(bool(mutant.equivalent) for mutant in chosen)} of them equivalent")
        sys.exit(1 if wrong else 0)

    # Processes that are ended leave semaphores of their progress bars, which multiprocessing would warn of.
    quiet = "ignore::UserWarning:multiprocessing.resource_tracker"
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": quiet}
    CONTEXT.set_forkserver_preload(PRELOADED)
    run = [mutant for mutant in chosen if not mutant.equivalent]
    files = sorted({mutant.file for mutant in run})
    results: Counter[str] = Counter()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary, concurrent.futures.ThreadPoolExecutor(options.jobs) as threads:
        copies: queue.Queue[Path] = queue.Queue()
        for number in range(options.jobs):
            copies.put(copy_of_checkout(Path(temporary) / str(number)))
        folder = copies.get()
        whole = sorted({name for file in files for name in tests_of(file, folder)})
        state, tail = outcome(folder, whole, 600.0)
        copies.put(folder)
        if state != "passed":
            sys.exit(f"Without any mutation the tests do not pass ({state}):\n{tail}")
        print(f"Without mutations: all tests pass, {time.perf_counter() - start:.0f} s", flush=True)

        def try_one(mutant: Mutant) -> tuple[Mutant, str, str, float]:
            begun = time.perf_counter()
            folder = copies.get()
            path = folder / mutant.file
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
            try:
                state, tail = outcome(folder, tests_of(mutant.file, folder), options.time_limit)
            finally:
                path.write_text(text, encoding="utf-8")
                copies.put(folder)
            return mutant, state, tail, time.perf_counter() - begun

        survivors = []
        for mutant, state, tail, seconds in threads.map(try_one, run):
            results[state] += 1
            name = {"passed": "SURVIVED", "failed": "noticed", "time": "noticed (time)"}.get(state, "BROKEN")
            print(f"{name:<14} {seconds:5.1f} s  {mutant.file:<22} {mutant.why}", flush=True)
            if state == "passed":
                survivors.append(mutant)
            elif state == "broken":
                print(tail)
    minutes = (time.perf_counter() - start) / 60
    print(
        f"\n{len(run)} mutations in {minutes:.1f} min: {results['failed'] + results['time']} noticed, "
        f"{results['passed']} survived; {len(chosen) - len(run)} equivalent ones not run"
    )
    for mutant in survivors:
        print(f"\nsurvived: {mutant.file}: {mutant.why}\n  - {mutant.old!r}\n  + {mutant.new!r}")
    sys.exit(1 if survivors or results["broken"] else 0)


if __name__ == "__main__":
    main()
