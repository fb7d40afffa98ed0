r"""Do this verifier and Math-Verify give the same verdicts on the same answers, and who is right where they do not?

    python benchmarks/agreement.py grade FOLDER          grade by both, print the table, write agreement.jsonl
    python benchmarks/agreement.py                       print the table of the agreement.jsonl that is kept
    python benchmarks/agreement.py show FOLDER           the disagreements, with their texts

FOLDER has math500.jsonl, minerva.jsonl and olympiadbench.jsonl, with `id`, `problem`, `answer` and `solution` (or null)
in each line. The answers are made of these: the solution as it stands, the gold answer in other forms, and answers that
are wrong. How each is made says whether it is right: that is who is right where the two verifiers differ. --answers
adds those of a model, from the result files of evaluate.py; of these nothing says what is right but reading them.

Math-Verify: pip install "math-verify[antlr4_13_2]==0.9.0". Each comparison has 30 seconds in both, so that a busy
machine decides nothing. agreement.jsonl has counts and verdicts, and no text of a benchmark.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tqdm import tqdm  # noqa: E402
from verifier import perturbed, rewritten, rows_of, same_plainly  # noqa: E402

import verify  # noqa: E402

KEPT = ROOT / "benchmarks" / "agreement.jsonl"
BENCHMARKS = ("math500", "minerva", "olympiadbench")
SECONDS = 30.0  # a comparison has, in both verifiers

# ---------------------------------------------------------------------------------------------------------------------
# Answers
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """An answer, and the text that says it, which is graded; `right` is what its making says, None of a model's."""

    id: str  # of the question
    kind: str
    gold: str
    answer: str
    saying: str
    right: bool | None

    @property
    def text(self) -> str:
        return self.saying.format(self.answer)


NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
FRACTION = re.compile(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}")
SCIENTIFIC = re.compile(r"(-?\d+(?:\.\d+)?)e(-?\d+)")
NOT_ONE_VALUE = re.compile(
    r"[=,<>;:]|\\(?:text|mbox|begin|[lg]e(?:q|qslant)?|neq?|in|to|cup|infty|pm|mp|circ)(?![a-z])|\\[{}%$]|[\[\]|]|np\."
)
UNITS = (r"\text{ cm}", r"\text{ meters}", r"\mathrm{~kg}", r"\text{ units}", r"\text{ dollars}", r"\ \text{feet}")
CUT = "solution cut off in its box"
SAYINGS = (
    r"So the answer is \boxed{{{}}}.",
    r"Therefore we get $\boxed{{{}}}$.",
    r"\boxed{{{}}}",
    r"Final Answer: The final answer is ${}$. I hope it is correct.",
    r"Hence $$\boxed{{{}}}$$",
)


def value_of(gold: str) -> Fraction | None:
    """The value of a plain number or fraction."""
    if NUMBER.fullmatch(gold):
        return Fraction(gold)
    if (found := FRACTION.fullmatch(gold)) and int(found[3]):
        return Fraction(int(found[1] + found[2]), int(found[3]))
    return None


def other_number(gold: str, rng: random.Random) -> str | None:
    """The same number in another form: a fraction, an exact decimal, powers of ten."""
    if found := SCIENTIFIC.fullmatch(gold):
        return rng.choice([rf"{found[1]} \times 10^{{{found[2]}}}", rf"{found[1]} \cdot 10^{{{found[2]}}}"])
    value = value_of(gold)
    if value is None:
        return None
    forms = [rf"\frac{{{7 * value.numerator}}}{{{7 * value.denominator}}}"]
    if gold.isdigit() and len(gold) < 7:
        forms += [f"{gold}.00", rf"{int(gold) - 1} + 1", rf"2 \cdot {int(gold)} - {gold}"]
    if exact := exact_decimal(value):
        forms.append(exact)
    if value.denominator > 1 and value > 1:
        whole, rest = divmod(value.numerator, value.denominator)
        forms.append(rf"{whole} + \frac{{{rest}}}{{{value.denominator}}}")
    forms = [form for form in forms if form != gold]
    return rng.choice(forms)


def exact_decimal(value: Fraction) -> str | None:
    """A fraction as a decimal, where that ends within six places."""
    if value.denominator == 1 or 10**6 % value.denominator:
        return None
    return f"{float(value):.6f}".rstrip("0")


def other_expression(gold: str, rng: random.Random) -> str | None:
    """The same value as an expression that has to be computed."""
    if NOT_ONE_VALUE.search(gold) or not gold.strip():
        return None
    halves, sums = rf"\frac{{2 \cdot \left({gold}\right)}}{{2}}", rf"\left({gold}\right) + 3 - 3"
    return rng.choice([halves, sums, rf"-\left(-\left({gold}\right)\right)"])


def wrong_expression(gold: str, rng: random.Random) -> str | None:
    """Another value: one more, twice as much, the negative, the square."""
    if (
        NOT_ONE_VALUE.search(gold)
        or not gold.strip()
        or re.search(r"\bC\b|C_", gold)
        or gold.strip() in ("0", "1", "-1")
    ):
        return None  # a constant C takes up what is added
    return rng.choice([rf"\left({gold}\right) + 1", rf"2 \left({gold}\right)", rf"-\left({gold}\right)"])


def with_unit(gold: str, rng: random.Random) -> str | None:
    return gold + rng.choice(UNITS) if NUMBER.fullmatch(gold) else None


def rounded(gold: str, _: random.Random) -> str | None:
    """A fraction without a decimal that ends, cut off after two to four digits: near, and another value."""
    value = value_of(gold)
    if value is None or exact_decimal(value) or value.denominator == 1:
        return None
    return f"{float(value):.3f}"


def parts_of(gold: str) -> tuple[str, list[str], str] | None:
    """Bracket, members and bracket of a tuple, or of a list without; None where there are inner brackets or commas."""
    found = re.fullmatch(r"\s*((?:\\left)?\()?([^()\[\]{}|=]+)((?:\\right)?\))?\s*", gold)
    if found is None or bool(found[1]) != bool(found[3]) or re.search(r"\d,\d{3}(?!\d)|,\\!|\\\\", gold):
        return None
    members = [member.strip() for member in found[2].split(",")]
    return (found[1] or "", members, found[3] or "") if len(members) > 1 and all(members) else None


def reordered_list(gold: str, _: random.Random) -> str | None:
    parts = parts_of(gold)
    return None if parts is None or parts[0] else ", ".join(reversed(parts[1]))


def reordered_tuple(gold: str, _: random.Random) -> str | None:
    parts = parts_of(gold)
    if parts is None or not parts[0] or parts[1] == parts[1][::-1]:
        return None
    return f"{parts[0]}{', '.join(reversed(parts[1]))}{parts[2]}"


def shorter_list(gold: str, _: random.Random) -> str | None:
    parts = parts_of(gold)
    return None if parts is None or parts[0] or parts[1][0] in parts[1][1:] else ", ".join(parts[1][1:])


# The kinds of answers that are made of a gold answer: what makes it, and whether it is right then.
MADE: dict[str, tuple[Callable[[str, random.Random], str | None], bool]] = {
    "as it is": (lambda gold, _: gold, True),
    "other LaTeX": (rewritten, True),
    "other LaTeX again": (rewritten, True),
    "other number form": (other_number, True),
    "to be computed": (other_expression, True),
    "with a unit": (with_unit, True),
    "list reordered": (reordered_list, True),
    "another value": (wrong_expression, False),
    "changed": (perturbed, False),
    "changed again": (perturbed, False),
    "rounded": (rounded, False),
    "tuple reordered": (reordered_tuple, False),
    "list cut short": (shorter_list, False),
}


def made_answers(folder: Path) -> Iterator[Answer]:
    """All answers that are made of the questions of a folder, always the same."""
    for benchmark in BENCHMARKS:
        rows = rows_of(folder / f"{benchmark}.jsonl")
        for row in rows:
            gold, seen = row["answer"], set()
            if row.get("solution"):
                yield Answer(row["id"], "solution", gold, row["solution"], "{}", True)
                if row["solution"].count(r"\boxed") == 1:
                    cut = row["solution"].index(r"\boxed") + len(r"\boxed{") + 1
                    yield Answer(row["id"], CUT, gold, row["solution"][:cut], "{}", False)
            for kind, (make, right) in MADE.items():
                rng = random.Random(f"{row['id']} {kind}")
                answer = make(gold, rng)
                if answer is not None and (answer, right) not in seen:
                    seen.add((answer, right))
                    yield Answer(row["id"], kind, gold, answer, rng.choice(SAYINGS), right)
            rng = random.Random(f"{row['id']} other")
            other = rng.choice(rows)["answer"]
            if not same_plainly(other, gold):
                yield Answer(row["id"], "gold of another", gold, other, rng.choice(SAYINGS), False)


def model_answers(files: list[str], folder: Path) -> Iterator[Answer]:
    """The answers in result files of evaluate.py to questions of the folder."""
    questions = {row["problem"]: row for name in BENCHMARKS for row in rows_of(folder / f"{name}.jsonl")}
    for file in files:
        for result in json.loads(Path(file).read_text(encoding="utf-8")).values():
            for row in result["rows"]:
                question = questions.get(row["problem"])
                if question is None:
                    sys.exit(f"{file}: this question is in none of the files of {folder}: {row['problem'][:80]!r}")
                for number, text in enumerate(row["texts"], start=1):
                    kind = "of the model" if len(row["texts"]) == 1 else f"of the model, {number}"
                    yield Answer(question["id"], kind, question["answer"], text, "{}", None)


# ---------------------------------------------------------------------------------------------------------------------
# Verdicts
# ---------------------------------------------------------------------------------------------------------------------


def math_verify() -> Callable[[Answer], bool]:
    """Math-Verify as its readme calls it. Ends the program where it is not installed."""
    try:
        import math_verify as peer
    except ImportError:
        sys.exit('Math-Verify is missing: pip install "math-verify[antlr4_13_2]==0.9.0"')
    logging.disable(logging.ERROR)
    limit = int(SECONDS)

    def decide(answer: Answer) -> bool:
        try:
            gold = peer.parse(f"\\boxed{{{answer.gold}}}", parsing_timeout=limit)
            given = peer.parse(answer.text, parsing_timeout=limit)
            return bool(peer.verify(gold, given, timeout_seconds=limit))
        except Exception:  # its parser raises on some answers; such an answer counts as refused
            return False

    return decide


@dataclass(frozen=True)
class Verdict:
    """What both say of one answer, and where they differ who is right, and why."""

    id: str
    kind: str
    here: bool | None  # None: the gold cannot be read, and its question is left out
    there: bool
    who: str = ""  # here, there, or open
    reason: str = ""

    @property
    def differ(self) -> bool:
        return bool(self.here) != self.there


# Changes of an answer that keep its value. The first after which Math-Verify accepts it is the reason why it did not.
REPAIRS: list[tuple[str, Callable[[str], str]]] = [
    ("bold letters around it", lambda s: re.sub(r"^\\mathbf\{(.*)\}$", r"\1", s)),
    ("a full stop inside of the formula", lambda s: s.removesuffix(".")),
    ("the dollar signs of a formula inside of the box", lambda s: s.strip("$")),
    ("spaces around it as commands", lambda s: re.sub(r"^\\displaystyle\s|^\\ |\\,$", "", s)),
    ("the sign ° in place of its command", lambda s: s.replace("°", r"^{\circ}")),
    ("the sign π in place of its command", lambda s: s.replace("π", r"\pi")),
    ("the sign − in place of a hyphen", lambda s: s.replace("−", "-")),
    ("spaces inside of it as commands", lambda s: s.replace(r"\,", "").replace(r"\;", "")),
    (r"\cfrac, \tfrac or \dfrac in place of \frac", lambda s: re.sub(r"\\[cdt]frac", r"\\frac", s)),
    (r"\frac12 or \sqrt2 without braces", lambda s: re.sub(r"\\(frac|sqrt)(\d)(\d)?", braced, s)),
    ("a unit behind the number", lambda s: re.sub(r"(\\ )?\\(text|mathrm)\{.*", "", s)),
    ("the name x before the value", lambda s: s.removeprefix("x = ")),
]
# What was found by reading those of which no rule says the reason: by question and kind, who is right and why.
ANOTHER_BASE = ("here", "accepted there, and wrong: a numeral of another base is another number")
PART_OF_A_FORMULA = ("here", "accepted there, and wrong: of a formula with several letters only a part is compared")
OTHER_UNIT = ("here", "accepted there, and wrong: a volume in place of an area")
COMPUTED_NUMERAL = ("there", "arithmetic on a numeral of another base than ten is not read here")
READ: dict[tuple[str, str], tuple[str, str]] = {
    ("math500-number_theory-864", "changed again"): ANOTHER_BASE,
    ("math500-number_theory-516", "changed"): ANOTHER_BASE,
    **{
        (f"math500-number_theory-{number}", "to be computed"): COMPUTED_NUMERAL
        for number in (46, 368, 516, 847, 864, 1257)
    },
    ("math500-geometry-473", "changed again"): OTHER_UNIT,
    ("math500-prealgebra-1114", "changed"): OTHER_UNIT,
    ("minerva-138", "changed"): PART_OF_A_FORMULA,
    **{("minerva-261", kind): PART_OF_A_FORMULA for kind in ("another value", "changed", "changed again")},
    ("minerva-268", "another value"): PART_OF_A_FORMULA,
    ("olympiadbench-2243", "changed again"): ("here", "accepted there, and wrong: a bracket that closes at infinity"),
}


def braced(match: re.Match[str]) -> str:
    return rf"\{match[1]}" + "".join(f"{{{digit}}}" for digit in match.groups()[1:] if digit)


def who_is_right(answer: Answer, here: bool | None, there: bool, peer: Callable[[Answer], bool]) -> tuple[str, str]:
    """Who is right where the two differ: here, there or open; and the reason."""
    if here is None:
        return "there", "a gold that is not read here, so that its question is left out and counted"
    if answer.right is None:
        return "open", "not read yet"
    if answer.kind == CUT:
        return "open", "a text that ends inside of its box has no answer here; there what stands before it has one"
    if bool(here) != answer.right:
        return "there", "not read yet"
    if answer.right:
        return "here", f"refused there: {why_refused(answer, peer)}"
    return "here", "accepted there, and wrong: not read yet"


def why_refused(answer: Answer, peer: Callable[[Answer], bool]) -> str:
    """The change that makes Math-Verify accept a right answer; several where no single one does."""
    text, done = answer.answer, []
    for reason, change in REPAIRS:
        changed = change(answer.answer)
        if changed != answer.answer and peer(replace(answer, answer=changed)):
            return reason
    for reason, change in REPAIRS:
        changed = change(text)
        done += [reason] if changed != text else []
        text = changed
        if peer(replace(answer, answer=text)):
            return "several of these in one answer" if len(done) > 1 else done[0]
    if SCIENTIFIC.fullmatch(answer.gold):
        return "a gold such as 1.07e16, which is no number there"
    return f"the same value in another form ({answer.kind})"


def graded(answers: list[Answer]) -> list[Verdict]:
    """Both verdicts of each answer."""
    peer = math_verify()
    here = verify.grade([a.text for a in answers], [a.gold for a in answers], time_limit=SECONDS)
    there = [peer(answer) for answer in tqdm(answers, desc="Math-Verify")]
    found = []
    for answer, ours, theirs in zip(answers, here, there, strict=True):
        verdict = Verdict(answer.id, answer.kind, ours, theirs)
        if verdict.differ:
            who, reason = who_is_right(answer, ours, theirs, peer)
            verdict = replace(verdict, who=who, reason=reason)
        elif answer.right is not None and bool(ours) != answer.right:
            verdict = replace(verdict, who="neither", reason="both against what its making says")
        found.append(verdict)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------------------


def kept_lines(verdicts: list[Verdict]) -> list[dict[str, Any]]:
    """What agreement.jsonl keeps: counts by benchmark and kind, and each verdict that is not the same or not right."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for verdict in verdicts:
        count = counts.setdefault((verdict.id.partition("-")[0], verdict.kind), Counter())
        count["answers"] += 1
        count["both right"] += bool(verdict.here) and verdict.there
        count["both wrong"] += not verdict.here and not verdict.there
    lines = [{"benchmark": benchmark, "kind": kind, **count} for (benchmark, kind), count in counts.items()]
    return lines + [asdict(verdict) for verdict in verdicts if verdict.who]


def verdicts_of(lines: list[dict[str, Any]]) -> list[Verdict]:
    """The verdicts that are kept, with what was found by reading."""
    found = [Verdict(**line) for line in lines if "answers" not in line]
    read = [READ.get((verdict.id, verdict.kind), (verdict.who, verdict.reason)) for verdict in found]
    return [replace(verdict, who=who, reason=why) for verdict, (who, why) in zip(found, read, strict=True)]


def report(lines: list[dict[str, Any]]) -> None:
    """Print agreement by kind of answer, and the reasons where the two differ."""
    counts = [line for line in lines if "answers" in line]
    verdicts = verdicts_of(lines)
    differing = [verdict for verdict in verdicts if verdict.differ]
    print(f"{'':28} {'answers':>8} {'same':>7} {'':>8}   where they differ, right is")
    print(f"{'':28} {'':>8} {'':>7} {'':>8}   {'here':>6} {'there':>6} {'open':>6}")
    kinds: dict[str, Counter[str]] = {}
    for line in counts:
        for name in (line["kind"], f"all of {line['benchmark']}", "all"):
            kinds.setdefault(name, Counter()).update({"answers": line["answers"]})
    for verdict in differing:
        for name in (verdict.kind, f"all of {verdict.id.partition('-')[0]}", "all"):
            kinds[name].update({"differ": 1, verdict.who: 1})
    for name in sorted(kinds, key=lambda name: name.startswith("all")):
        count = kinds[name]
        same = count["answers"] - count["differ"]
        print(f"{name:28} {count['answers']:>8} {same:>7} {same / count['answers']:>8.2%}", end="   ")
        print(f"{count['here']:>6} {count['there']:>6} {count['open']:>6}")
    print("\nWho is right where they differ, and why:")
    for (who, reason), number in Counter((v.who, v.reason) for v in differing).most_common():
        print(f"{number:>5}  {who:<6} {reason}")
    neither = sum(verdict.who == "neither" for verdict in verdicts)
    print(f"\n{neither} answers of which both say the opposite of what their making says")


def grade(options: argparse.Namespace) -> None:
    """Grade by both, print the table, and write agreement.jsonl."""
    folder = Path(options.folder)
    answers = [*made_answers(folder), *model_answers(options.answers, folder)]
    lines = kept_lines(graded(answers))
    KEPT.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    report(lines)


def show(options: argparse.Namespace) -> None:
    """Print the disagreements with their texts."""
    folder = Path(options.folder)
    answers = {(a.id, a.kind): a for a in [*made_answers(folder), *model_answers(options.answers, folder)]}
    for verdict in verdicts_of(rows_of(KEPT)):
        answer = answers.get((verdict.id, verdict.kind))
        if answer is None:
            continue  # of a model: without --answers it is not known
        print(f"{verdict.id}, {verdict.kind}: {verdict.here} here, {verdict.there} there; right is {verdict.who}")
        print(f"    {verdict.reason}\n    gold {answer.gold!r}\n    text {answer.text[-200:]!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(command=lambda _: report(rows_of(KEPT)))
    commands = parser.add_subparsers()
    for name, command in (("grade", grade), ("show", show)):
        chosen = commands.add_parser(name, help=command.__doc__)
        chosen.add_argument("folder", help="with math500.jsonl, minerva.jsonl and olympiadbench.jsonl")
        chosen.add_argument("--answers", nargs="+", default=[], help="result files of evaluate.py --out")
        chosen.set_defaults(command=command)
    options = parser.parse_args()
    options.command(options)


if __name__ == "__main__":
    main()
