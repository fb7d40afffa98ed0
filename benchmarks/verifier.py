r"""How right, how fast and how safe is the verifier? Every figure of it that the README states, each by one command.

    python benchmarks/verifier.py cases                    the labelled cases, and the time that each takes
    python benchmarks/verifier.py peer-tests               Math-Verify's own equality tests
    python benchmarks/verifier.py golds FILE.jsonl ...     gold answers against themselves, rewritten, others, perturbed
    python benchmarks/verifier.py fuzz --count 100000      mutated answers: exceptions, time, code that was run, memory

`cases` and `peer-tests` also run Math-Verify where it is installed: pip install "math-verify[antlr4_13_2]==0.9.0".
`peer-tests` takes its tests from its source archive, which pip downloads, or from --tests FOLDER; it reads the file as
a syntax tree and runs none of it. FILE.jsonl has an `answer` in each line.
"""

from __future__ import annotations

import argparse
import ast
import json
import logging
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tqdm import tqdm  # noqa: E402

import verify  # noqa: E402
from verify.extraction import final_answers  # noqa: E402
from verify.grading import idle_workers  # noqa: E402
from verify.parser import Words, read  # noqa: E402

CASES = ROOT / "tests" / "verify" / "data" / "verify_cases.jsonl"
Decide = Callable[[dict[str, Any]], bool]

# ---------------------------------------------------------------------------------------------------------------------
# The two verifiers
# ---------------------------------------------------------------------------------------------------------------------


def ours(case: dict[str, Any]) -> bool:
    decide = verify.is_correct if case["kind"] == "response" else verify.is_equivalent
    return decide(case["pred"], case["gold"])


def math_verify() -> Decide | None:
    """Math-Verify as its readme calls it, with its own time limits; None where it is not installed."""
    try:
        import math_verify as peer
    except ImportError:
        return None
    logging.disable(logging.ERROR)

    def decide(case: dict[str, Any]) -> bool:
        text = case["pred"] if case["kind"] == "response" else f"$\\boxed{{{case['pred']}}}$"
        try:
            return bool(peer.verify(peer.parse(f"${case['gold']}$"), peer.parse(text)))
        except Exception:  # its parser raises on some answers; such an answer counts as refused
            return False

    return decide


def rows_of(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def timed(decide: Decide, case: dict[str, Any]) -> tuple[bool, float]:
    start = time.perf_counter()
    return decide(case), time.perf_counter() - start


def machine() -> str:
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


# ---------------------------------------------------------------------------------------------------------------------
# Labelled cases
# ---------------------------------------------------------------------------------------------------------------------


def cases(arguments: argparse.Namespace) -> None:
    """Right and wrong verdicts on labelled cases, and the time a case, in alternating rounds."""
    labelled = [row for path in arguments.files or [CASES] for row in rows_of(path)]
    verifiers: dict[str, Decide] = {"this verifier": ours}
    if peer := math_verify():
        verifiers["Math-Verify"] = peer
    verdicts: dict[str, list[bool]] = {}
    seconds: dict[str, list[list[float]]] = {name: [[] for _ in labelled] for name in verifiers}
    for turn in range(arguments.rounds):
        for name, decide in verifiers.items():
            results = [timed(decide, case) for case in tqdm(labelled, desc=f"round {turn + 1}: {name}", leave=False)]
            verdicts[name] = [verdict for verdict, _ in results]
            for times, (_, second) in zip(seconds[name], results, strict=True):
                times.append(second)
    print(f"{len(labelled)} labelled cases, one process, {arguments.rounds} alternating rounds; {machine()}\n")
    print(f"{'':15} {'right':>14} {'wrongly':>9} {'wrongly':>8} {'median':>9} {'p99':>10} {'longest':>10}")
    print(f"{'':15} {'':>14} {'accepted':>9} {'refused':>8}")
    for name in verifiers:
        wrong = [case for case, verdict in zip(labelled, verdicts[name], strict=True) if verdict != case["expected"]]
        accepted = sum(not case["expected"] for case in wrong)
        right = len(labelled) - len(wrong)
        times = [1000 * statistics.median(values) for values in seconds[name]]
        print(
            f"{name:15} {right:>5} ({right / len(labelled):6.1%}) {accepted:>9} {len(wrong) - accepted:>8}"
            f" {statistics.median(times):6.2f} ms {percentile(times, 0.99):7.1f} ms {max(times):7.1f} ms"
        )
    for case, verdict in zip(labelled, verdicts["this verifier"], strict=True):
        if verdict != case["expected"]:
            print(f"\nwrong: {case['id']}: gold {case['gold']!r}, answer {case['pred']!r}, expected {case['expected']}")


# ---------------------------------------------------------------------------------------------------------------------
# Math-Verify's own tests
# ---------------------------------------------------------------------------------------------------------------------

# Tests that expect what this verifier's conventions, or mathematics, deny. By file::function: number -> reason.
COMMA = "a decimal comma: here 2,74 is a list of two"
EXACT = "a tolerance: here decimals are exact values"
LAST_BOX = "several boxes with text between them: here the last one counts"
CONTRADICT = {
    "test_all::test_number_extraction": {5: COMMA, 6: COMMA, 7: COMMA, 17: COMMA},
    "test_all::test_latex_notation": dict.fromkeys((5, 6), "that a formula over several lines is not read"),
    "test_all::test_relations_math": {21: "that 1 = ... = 0 is the same as 0"},
    "test_all::test_complex_math_expressions": {0: EXACT, 7: EXACT, 13: EXACT},
    "test_all::test_math_extraction_additional_cases": {17: LAST_BOX},
    "test_all::test_set_rel_assymetry": {3: "that an inequality does not answer a gold interval"},
    "test_boxed::test_boxed": {0: LAST_BOX},
    "test_numina_cases::test_numina_cases": {24: "a box that is never closed"},
    "test_open_thoughts::test_open_thoughts": {14: LAST_BOX, 27: LAST_BOX},
    "test_strict::test_strict_variable_comparison": {1: "a setting under which f(x) and f(y) are the same"},
    "test_yujianll::test_string_extraction": {9: "that 1 − 1/e equals 1 + 1/e"},
}


def peer_tests(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tests = Path(arguments.tests) if arguments.tests else download_tests(Path(folder))
        found = [case for path in sorted(tests.glob("test_*.py")) for case in equality_tests(path)]
    if not found:
        sys.exit(f"{tests}: no equality tests here; --tests takes the folder `tests` of Math-Verify's source")
    fair = [case for case in found if case["against"] is None]
    peer = math_verify()
    print(f"{len(found)} equality tests of Math-Verify, {len(found) - len(fair)} of them against the conventions here:")
    for reason, count in Counter(case["against"] for case in found if case["against"]).most_common():
        print(f"  {count:>2}  {reason}")
    print(f"\n{'':15} {'all':>16} {'the other ones':>17}")
    verdicts = {"this verifier": [verify.is_correct(case["pred"], peer_gold(case["gold"])) for case in found]}
    if peer:
        verdicts["Math-Verify"] = [peer_verdict(case) for case in tqdm(found, desc="Math-Verify", leave=False)]
    for name, given in verdicts.items():
        right = [verdict == case["expected"] for verdict, case in zip(given, found, strict=True)]
        right_fair = [hit for hit, case in zip(right, found, strict=True) if case["against"] is None]
        share, share_fair = sum(right) / len(found), sum(right_fair) / len(fair)
        print(f"{name:15} {sum(right):>5} = {share:6.1%} {sum(right_fair):>8} = {share_fair:6.1%}")
    for verdict, case in zip(verdicts["this verifier"], found, strict=True):
        if verdict != case["expected"] and case["against"] is None:
            print(
                f"\nwrong: {case['id']}: gold {case['gold'][-80:]!r}, text {case['pred'][-80:]!r}: {case['expected']}"
            )


def download_tests(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    done = subprocess.run([*command, "math-verify==0.9.0", "-d", str(folder)], capture_output=True, text=True)
    archives = list(folder.glob("math_verify-*.tar.gz"))
    if not archives:
        sys.exit(f"pip could not download Math-Verify's source; give its folder by --tests:\n{done.stderr.strip()}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("math_verify-*/tests"))


def equality_tests(path: Path) -> list[dict[str, Any]]:
    """The (gold, pred, expected) of the parametrised tests in a file, of those that are literals."""
    found = []
    functions = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    for function in functions:
        for decorator in function.decorator_list:
            if not isinstance(decorator, ast.Call) or ast.unparse(decorator.func) != "pytest.mark.parametrize":
                continue
            names = re.split(r"\s*,\s*", ast.literal_eval(decorator.args[0]))
            if names[:2] != ["gold", "pred"]:
                continue
            reasons = CONTRADICT.get(f"{path.stem}::{function.name}", {})
            for number, node in enumerate(decorator.args[1].elts):  # type: ignore[attr-defined]
                try:
                    case = dict(zip(names, ast.literal_eval(node), strict=True))
                except ValueError:
                    continue  # an f-string
                expected = bool(case.get("expected", case.get("result")))
                name = f"{path.stem}::{function.name}[{number}]"
                found.append({**case, "id": name, "expected": expected, "against": reasons.get(number)})
    return found


def peer_gold(text: str) -> str:
    """The gold answer, which these tests write as a formula or as a whole solution."""
    formula = re.fullmatch(r"\s*(\$\$?)([^$]+)\1\s*", text)
    if formula and r"\boxed" not in text:
        return formula[2]
    answers = final_answers(text)
    return answers[-1] if answers else text


def peer_verdict(case: dict[str, Any]) -> bool:
    """Math-Verify as its own tests call it, but with one setting for all of them."""
    import math_verify as peer

    targets = [peer.LatexExtractionConfig(boxed_match_priority=0), peer.ExprExtractionConfig()]
    return bool(peer.verify(peer.parse(case["gold"], targets), peer.parse(case["pred"], targets)))


# ---------------------------------------------------------------------------------------------------------------------
# Gold answers
# ---------------------------------------------------------------------------------------------------------------------


def golds(arguments: argparse.Namespace) -> None:
    """Each gold answer against itself, a rewriting, the gold of another question, and a perturbed copy."""
    rows = [row for path in arguments.files for row in rows_of(path)]
    answers = [str(row["answer"]) for row in rows if not row.get("choices")]
    rng = random.Random(0)
    pairs: dict[str, list[tuple[str, str]]] = {"itself": [], "rewritten": [], "another": [], "perturbed": []}
    for gold in answers:
        pairs["itself"].append((gold, gold))
        if (other := rewritten(gold, rng)) is not None:
            pairs["rewritten"].append((other, gold))
        another = rng.choice(answers)
        if not same_plainly(another, gold):
            pairs["another"].append((another, gold))
        if (other := perturbed(gold, rng)) is not None:
            pairs["perturbed"].append((other, gold))
    print(
        f"{len(rows)} rows of {len(arguments.files)} files; {len(set(answers))} different gold answers; {machine()}\n"
    )
    print(f"{'against':12} {'pairs':>7} {'accepted':>9} {'refused':>8} {'gold not read':>14}   share as it should be")
    for name, wanted in [("itself", True), ("rewritten", True), ("another", False), ("perturbed", False)]:
        texts = [f"\\boxed{{{answer}}}" for answer, _ in pairs[name]]
        verdicts = verify.grade(texts, [gold for _, gold in pairs[name]])
        counts = Counter(verdicts)
        share = counts[wanted] / len(verdicts) if wanted else 1 - counts[True] / len(verdicts)
        print(f"{name:12} {len(verdicts):>7} {counts[True]:>9} {counts[False]:>8} {counts[None]:>14}   {share:.2%}")
        for (answer, gold), verdict in zip(pairs[name], verdicts, strict=True):
            if (verdict is not True) if wanted else verdict is True:
                print(f"    {'not accepted' if wanted else 'accepted'}: gold {gold!r}, answer {answer!r}: {verdict}")
    as_text = [gold for gold in dict.fromkeys(answers) if isinstance(read(gold), Words)]
    print(f"\n{len(as_text)} of the gold answers are words, which are compared as text; such as {as_text[:8]}")


def same_plainly(left: str, right: str) -> bool:
    """Have two golds the same value, as far as it shows without a verifier: the same number, or the same letters?"""
    values = []
    for answer in (left, right):
        plain = re.sub(
            r"\\d?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", re.sub(r"\\(?:text|mbox)\{[^{}]*\}|\^\\circ", "", answer)
        )
        try:
            values.append(Fraction(re.sub(r"[\\$%,\s]", "", plain)))
        except (ValueError, ZeroDivisionError):
            values.append(Fraction(-len(values)))  # no number: equal to no other
    return values[0] == values[1] or re.sub(r"\W", "", left) == re.sub(r"\W", "", right)


def rewritten(gold: str, rng: random.Random) -> str | None:
    """The same value in other LaTeX: one to three changes of spelling, form or order that keep it."""
    changes: list[Callable[[str], str]] = [
        lambda s: s.replace(r"\frac", rng.choice([r"\dfrac", r"\tfrac", r"\cfrac"])),
        lambda s: re.sub(r"\\frac\{(\d)\}\{(\d)\}", r"\\frac\1\2", s),
        lambda s: re.sub(r"^(-?)\\d?frac\{(\d+)\}\{(\d+)\}$", r"\1\2/\3", s),
        lambda s: re.sub(r"^(-?)(\d+)/(\d+)$", r"\1\\frac{\2}{\3}", s),
        lambda s: re.sub(
            r"^(-?)\\frac\{(\d+)\}\{(\d+)\}$", lambda m: rf"{m[1]}\frac{{{2 * int(m[2])}}}{{{2 * int(m[3])}}}", s
        ),
        lambda s: s if r"\left" in s else s.replace("(", r"\left(").replace(")", r"\right)"),
        lambda s: re.sub(r"\\left|\\right(?!arrow)", "", s),
        lambda s: s if r"\text" in s else re.sub(r"(?<=[^\\ ])([+=<>])(?=[^ ])", r"\\, \1 \\; ", s),
        lambda s: s if r"\cdots" in s else s.replace(r"\cdot", r"\times"),
        lambda s: s if r"\text" in s else s.replace("-", "−"),
        lambda s: re.sub(r"\\(le|ge)q?(?![a-z])", r"\\\1qslant ", s),
        lambda s: re.sub(r"\\sqrt\{(\d)\}", r"\\sqrt\1", s),
        lambda s: re.sub(r"^(-?\d{1,3}?)((?:\d{3})+)$", lambda m: m[1] + re.sub(r"(\d{3})", r"{,}\1", m[2]), s),
        lambda s: s + ".0" if re.fullmatch(r"-?\d+", s) else s,
        lambda s: s + "0" if re.fullmatch(r"-?\d*\.\d+", s) else s,
        lambda s: str(Fraction(s)) if re.fullmatch(r"-?\d+\.\d+", s) else s,
        lambda s: f"x = {s}" if re.fullmatch(r"-?[\d.]+", s) else s,
        lambda s: rf"\frac{{{3 * int(s)}}}{{3}}" if re.fullmatch(r"\d{1,15}", s) else s,
        lambda s: rf"{s}\text{{ units}}" if re.fullmatch(r"-?[\d.]+", s) else s,
        lambda s: ", ".join(reversed(s.split(","))) if re.fullmatch(r"(?:-?\d{1,2},\s*)+-?\d{1,2}", s) else s,
        lambda s: r" \cup ".join(reversed(s.split(r"\cup"))) if s.count(r"\cup") == 1 and "=" not in s else s,
        lambda s: re.sub(r"^\\text\{([^{}]*)\}$", r"\1", s),
        lambda s: re.sub(r"\^\\circ|\^\{\\circ\}", "°", s),
        lambda s: re.sub(r"^(\w+)\s*\+\s*(\w+)$", r"\2 + \1", s),
        lambda s: s if r"\text" in s else s.replace(r"\pi", "π"),
        lambda s: s.replace(r"\%", "%"),
    ]  # fmt: skip
    wrappings: list[Callable[[str], str]] = [
        lambda s: f"${s}$",
        lambda s: s + ".",
        lambda s: rf"\displaystyle {s}",
        lambda s: rf"\ {s}\,",
        lambda s: rf"\mathbf{{{s}}}" if r"\text" not in s else s,
    ]
    result = gold.strip().removesuffix(".")
    done = 0
    for change in rng.sample(changes, len(changes)):
        changed = change(result)
        done += changed != result
        result = changed
        if done == 3:
            break
    if done == 0 or rng.random() < 0.3:
        result = rng.choice(wrappings)(result)
    return result if result != gold else None


def perturbed(gold: str, rng: random.Random) -> str | None:
    """Another value: a sign, a digit, the order of a tuple, or a bracket of an interval changed."""
    kinds = []
    if digits := list(re.finditer(r"\d", gold)):
        kinds.append("digit")
    if re.fullmatch(r"[\d.]*[1-9][\d.]*|\\d?frac\{\d+\}\{\d+\}", gold):
        kinds.append("sign")
    pair = re.fullmatch(r"\s*(?:\\left)?([(\[])\s*([^,()\[\]]+),\s*([^,()\[\]]+?)\s*(?:\\right)?([)\]])\s*", gold)
    if pair and pair[2].strip() != pair[3].strip():
        kinds += ["order", "bracket"]
    if not kinds:
        return None
    kind = rng.choice(kinds)
    if kind == "sign":
        return "-" + gold
    if kind == "order" and pair:
        return f"{pair[1]}{pair[3]}, {pair[2]}{pair[4]}"
    if kind == "bracket" and pair:
        return f"{'[' if pair[1] == '(' else '('}{pair[2]}, {pair[3]}{pair[4]}"
    digit = rng.choice(digits)
    return f"{gold[: digit.start()]}{(int(digit[0]) + 1) % 10}{gold[digit.end() :]}"


# ---------------------------------------------------------------------------------------------------------------------
# Fuzzing
# ---------------------------------------------------------------------------------------------------------------------

PIECES = [
    r"\frac", r"\sqrt", r"\sqrt[3]", "{", "}", "(", ")", "[", "]", r"\{", r"\}", "^", "_", "!", "!!", "+", "-", "*",
    "/", ",", ";", "=", "<", ">", r"\le", r"\ge", r"\ne", r"\cup", r"\cap", r"\setminus", r"\in", "|", r"\pm",
    r"\infty", r"\pi", "e", "i", "x", "y", "n", "0", "1", "2", "9", "10", "99999", "1e9", "0.1", ".", ":", "%", r"\%",
    "$", r"\$", r"\text{", r"\mathrm{", r"\boxed{", r"\\", "&", r"\sin", r"\cos", r"\log", r"\ln", r"\exp", r"\binom",
    r"\sum_{k=1}^{9}", r"\prod_{i=1}^{99}", r"\lfloor", r"\rfloor", r"\left", r"\right", r"\overline", r"\mod",
    r"\equiv", r"\begin{pmatrix}", r"\end{pmatrix}", r"\begin{cases}", r"\end{cases}", r"\mathbb{R}", r"\mathbb{Z}",
    r"\ldots", r"\approx", "^{-1}", "^2", "^{99}", "x^x", r"\circ", r"\gcd", r"\max", r"\det", r"\Gamma", r"\over",
    r"\choose", "and", "or", "eval(", "exec(", "lambda:0", "@", "#", "~", r"\0", "é", "😀", "𝟙", "½", "√", "−",
    "__import__('os').system('touch {canary}')", "open('{canary}','w')", "().__class__.__base__.__subclasses__()",
]  # fmt: skip


def mutated(text: str, rng: random.Random, canary: str) -> str:
    """The text with one to six pieces put in, cut out, doubled, or made of noise; or one piece, many times nested."""
    if rng.random() < 0.02:
        piece, times = rng.choice(PIECES), rng.choice([10, 100, 1_000, 10_000])
        return piece * times + text + rng.choice(PIECES) * times
    if rng.random() < 0.02:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(200))).decode("utf-8", "replace")
    for _ in range(rng.randint(1, 6)):
        start = rng.randint(0, len(text))
        end = min(len(text), start + rng.randint(0, 6))
        kind = rng.randrange(4)
        if kind == 0:
            text = text[:start] + rng.choice(PIECES).replace("{canary}", canary) + text[start:]
        elif kind == 1:
            text = text[:start] + text[end:]
        elif kind == 2:
            text = text[:end] + text[start:end] * rng.randint(1, 3) + text[end:]
        else:
            text = text[:start] + chr(rng.randrange(1, 0x3000)) + text[end:]
    return text


def fuzz(arguments: argparse.Namespace) -> None:
    """Grade mutated texts against mutated golds, one by one, in one worker process."""
    seeds = [case[key] for case in rows_of(CASES) for key in ("gold", "pred")]
    rng = random.Random(arguments.seed)
    exceptions, counts = Counter[str](), Counter[Any]()
    longest, slowest, over_limit, memory = 0.0, "", 0, 0
    with tempfile.TemporaryDirectory() as folder:
        canary = str(Path(folder) / "touched")
        verify.grade([r"\boxed{x}"], ["y"])  # the process starts here
        for turn in tqdm(range(arguments.count)):
            gold = rng.choice(seeds)
            gold = mutated(gold, rng, canary) if rng.random() < 0.5 else gold
            text = mutated(rng.choice([gold, rng.choice(seeds)]), rng, canary)
            text = f"\\boxed{{{text}}}" if rng.random() < 0.8 else text
            start = time.perf_counter()
            try:
                counts[verify.grade([text], [gold], time_limit=arguments.time_limit)[0]] += 1
            except Exception as error:  # whatever it is, it must not come out of grade: that is what is counted
                exceptions[repr(error)[:100]] += 1
            seconds = time.perf_counter() - start
            over_limit += seconds >= arguments.time_limit
            if seconds > longest:
                longest, slowest = seconds, f"gold {gold[:100]!r}, text {text[:100]!r}"
            if turn % 1_000 == 0:
                memory = max(memory, peak_memory())
        touched = Path(canary).exists()
    print(f"{arguments.count} mutated pairs, seed {arguments.seed}, {machine()}")
    print(f"exceptions out of grade   {sum(exceptions.values())} {dict(exceptions) or ''}")
    print(f"code of an answer was run {'YES' if touched else 'no'}")
    print(f"over the time limit       {over_limit} (limit {arguments.time_limit} s)")
    print(f"longest                   {1000 * longest:.0f} ms: {slowest}")
    print(f"peak memory of a worker   {memory / 2**20:.0f} MB")
    print(f"verdicts                  {counts[True]} right, {counts[False]} wrong, {counts[None]} golds not read")


def peak_memory() -> int:
    """Bytes that the worker processes have held at most, each; 0 where the system does not say."""
    peaks = [0]
    for worker in idle_workers:
        status = Path(f"/proc/{worker.process.pid}/status")
        if status.exists() and (peak := re.search(r"VmHWM:\s*(\d+)", status.read_text())):
            peaks.append(1024 * int(peak[1]))
    return max(peaks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, command in [("cases", cases), ("peer-tests", peer_tests), ("golds", golds), ("fuzz", fuzz)]:
        commands.add_parser(name, help=command.__doc__).set_defaults(command=command)
    choices = commands.choices
    choices["cases"].add_argument("files", nargs="*", help="labelled cases; without, those of the tests")
    choices["cases"].add_argument("--rounds", type=int, default=5)
    choices["peer-tests"].add_argument("--tests", help="the folder `tests` of Math-Verify's source")
    choices["golds"].add_argument("files", nargs="+", help="JSONL with an `answer` in each line")
    choices["fuzz"].add_argument("--count", type=int, default=100_000)
    choices["fuzz"].add_argument("--seed", type=int, default=0)
    choices["fuzz"].add_argument("--time-limit", type=float, default=5.0)
    arguments = parser.parse_args()
    arguments.command(arguments)


if __name__ == "__main__":
    main()
