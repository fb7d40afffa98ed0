"""Benchmarks by name: where each comes from, how its rows become questions, and how its papers measure it.

`BENCHMARKS` is the only place that knows. No benchmark's questions are part of the project: they come from the Hub
(`pip install datasets`), from files NAME.jsonl in the folder of --bench-dir, or from the file of --bench NAME=FILE.
"""

from __future__ import annotations

import csv
import os
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.command import ConfigError
from questions import read_data
from rollout import INSTRUCTION, noise_key
from sources.faults import DataError, Fault, Question, first_line, short, sifted
from sources.fields import Fields, checked
from sources.hub import rows_of_hub

Row = dict[str, Any]

# ---------------------------------------------------------------------------------------------------------------------
# Rows of others in this project's fields
# ---------------------------------------------------------------------------------------------------------------------


def as_it_is(row: Row) -> Row:
    """Fields that --data would read too: `problem` or `question`, and an `answer`, which may stand behind ####."""
    return row


def of_matharena(row: Row) -> Row:
    types = row.pop("problem_type", None)
    return as_it_is({**row, "id": row.get("problem_idx"), "subject": ", ".join(types) if types else None})


def of_math500(row: Row) -> Row:
    return as_it_is({**row, "id": row.get("unique_id")})


def of_olympiadbench(row: Row) -> Row:
    """The first final answer, which may be several values; a proof has none."""
    found = (row.get("final_answer") or [""])[0]
    return {
        "id": row.get("id"),
        "problem": row.get("question"),
        "answer": found.replace("$", "").strip(),
        "subject": row.get("subfield"),
    }


def of_arc(row: Row) -> Row:
    """Letters for all: some questions have their options labelled 1 to 4."""
    choices, labels = row["choices"]["text"], row["choices"]["label"]
    letter = chr(ord("A") + labels.index(row["answerKey"]))
    return {"id": row.get("id"), "problem": row["question"], "choices": list(choices), "answer": letter}


def of_mmlu_pro(row: Row) -> Row:
    return {
        "id": row.get("question_id"),
        "problem": row["question"],
        "choices": list(row["options"]),
        "answer": row["answer"],
        "subject": row.get("category"),
    }


def of_gpqa(row: Row) -> Row:
    """Upstream the right option stands first; here its place depends on the question alone, the same in every run."""
    problem, right = row["Question"].strip(), row["Correct Answer"].strip()
    wrong = [row[f"Incorrect Answer {number}"].strip() for number in (1, 2, 3)]
    place = noise_key("gpqa", problem) % 4
    return {
        "id": row.get("Record ID"),
        "problem": problem,
        "choices": [*wrong[:place], right, *wrong[place:]],
        "answer": "ABCD"[place],
        "subject": row.get("High-level domain"),
    }


def of_svamp(row: Row) -> Row:
    return as_it_is(
        {
            "id": row.get("ID"),
            "problem": f"{row['Body'].strip().rstrip('.')}. {row['Question'].strip()}",
            "answer": re.sub(r"\.0$", "", str(row["Answer"]).strip()),
            "subject": row.get("Type"),
        }
    )


def of_asdiv(row: Row) -> Row:
    """The answer without its unit: `9 (apples)`."""
    return {
        "problem": f"{row['body'].strip()} {row['question'].strip()}",
        "answer": re.sub(r"\s*\([^()]*\)", "", row["answer"]).strip(),
        "subject": row.get("solution_type"),
    }


# ---------------------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Benchmark:
    """What is known of one. What could not be looked up is empty, or says so."""

    title: str
    size: int  # questions
    answers: str  # what is compared: a whole number, a number, an expression, or the letter of a choice
    samples: int  # completions of a question in the papers that report it
    hub: str  # name[/configuration]:split; empty where no set on the Hub is known to be this one
    convert: Callable[[Row], Row]  # a row of the Hub set, or of the authors' file, in this project's fields
    licence: str
    flaws: str
    rel_tol: float = 0.0  # relative difference that a number may have from the gold
    whole_numbers_exact: bool = True  # the tolerance is for golds that are no whole numbers
    files: tuple[str, ...] = ()  # other names of its file in --bench-dir

    @property
    def prompt(self) -> str:
        """What is asked beside the question, where no flag says otherwise."""
        letter = "The answer is the letter of one choice. " if self.answers == "letter" else ""
        return letter + INSTRUCTION


MAA = "; the text of the competition is the MAA's"
RECENT = "One question is 3.3 points. Models whose texts were gathered after {} may have seen it."
BENCHMARKS = {
    "aime24": Benchmark(
        "AIME I and II 2024", 30, "whole number", 32, "HuggingFaceH4/aime_2024:train", as_it_is,
        licence="none stated on the Hub" + MAA, flaws=RECENT.format("February 2024"),
    ),
    "aime25": Benchmark(
        "AIME I and II 2025", 30, "whole number", 32, "MathArena/aime_2025:train", of_matharena,
        licence="CC BY-NC-SA 4.0 (MathArena)" + MAA, flaws=RECENT.format("February 2025"),
    ),
    "aime26": Benchmark(
        "AIME I and II 2026", 30, "whole number", 32, "MathArena/aime_2026:train", of_matharena,
        licence="CC BY-NC-SA 4.0 (MathArena)" + MAA, flaws=RECENT.format("February 2026"),
    ),
    "amc": Benchmark(
        "AMC 12 of 2022 and 2023", 83, "whole number", 32, "AI-MO/aimo-validation-amc:train", as_it_is,
        licence="Apache-2.0 (the set)" + MAA, files=("amc83",),
        flaws="The competition offers choices; here the answer is a number. It contains the 40 of amc23.",
    ),
    "amc23": Benchmark(
        "AMC 12 of 2023", 40, "whole number", 32, "math-ai/amc23:test", as_it_is,
        licence="none stated on the Hub" + MAA, flaws="A part of amc: do not average the two.",
    ),
    "math500": Benchmark(
        "MATH-500 (Hendrycks et al. 2021, Lightman et al. 2023)", 500, "expression", 1,
        "HuggingFaceH4/MATH-500:test", of_math500, licence="MIT (MATH and PRM800K)",
        flaws="Seven problems have a sibling in the MATH training set with another number; 5 are in mmlu_pro too.",
    ),
    "minerva": Benchmark(
        "Minerva, OCWCourses (Lewkowycz et al. 2022)", 272, "expression", 1, "math-ai/minervamath:test", as_it_is,
        licence="none stated on the Hub; the text is MIT OpenCourseWare's", rel_tol=0.01, whole_numbers_exact=False,
        flaws="Golds are rounded to two or three digits, and some are written as Python (4.5e33, np.arcsin(10/13)).",
    ),
    "olympiadbench": Benchmark(
        "OlympiadBench, English, text only, open ended (He et al. 2024)", 675, "expression", 1,
        "Hothan/OlympiadBench/OE_TO_maths_en_COMP:train", of_olympiadbench, licence="Apache-2.0 (as on the Hub)",
        flaws="The set on the Hub has 674 of the 675. Two golds cannot be read and are left out. Several values may "
        "stand in one gold.",
    ),
    "arc_c": Benchmark(
        "ARC-Challenge, test (Clark et al. 2018)", 1172, "letter", 1, "allenai/ai2_arc/ARC-Challenge:test", of_arc,
        licence="CC BY-SA 4.0", flaws="3 to 5 choices; chance is 25 %.",
    ),
    "gpqa_diamond": Benchmark(
        "GPQA, diamond (Rein et al. 2023)", 198, "letter", 1, "", of_gpqa,
        licence="CC BY 4.0; its authors ask that the questions are not shown in plain text online",
        flaws="From your own copy only: --bench gpqa_diamond=FILE, their gpqa_diamond.csv or JSONL. Chance is 25 %.",
    ),
    "mmlu_pro": Benchmark(
        "MMLU-Pro, test (Wang et al. 2024)", 12032, "letter", 1, "TIGER-Lab/MMLU-Pro:test", of_mmlu_pro,
        licence="MIT on the Hub, Apache-2.0 in its repository",
        flaws="3 to 10 choices. 159 questions stand twice. Its authors have corrected keys several times, so that "
        "versions differ.",
    ),
    "gsm8k": Benchmark(
        "GSM8K, test (Cobbe et al. 2021)", 1319, "whole number", 1, "openai/gsm8k/main:test", as_it_is,
        licence="MIT", files=("gsm8k_test",),
        flaws="Some questions are ambiguous or have a wrong answer: Vendrow et al. 2025 revised it as GSM8K-Platinum.",
    ),
    "svamp": Benchmark(
        "SVAMP (Patel et al. 2021)", 1000, "number", 1, "ChilleD/SVAMP:train+test", of_svamp, licence="MIT",
        rel_tol=1e-4, flaws="Some answers are wrong. The set on the Hub calls 700 of the 1,000 train: both count here.",
    ),
    "asdiv": Benchmark(
        "ASDiv (Miao et al. 2020)", 2305, "number", 1, "EleutherAI/asdiv/asdiv:validation", of_asdiv,
        licence="CC BY-NC 4.0 (as on the Hub)", rel_tol=2e-4,
        flaws="The Qwen2.5-Math evaluation has 2,215 of them. Some answers are names, times or ratios.",
    ),
    "mawps": Benchmark(
        "MAWPS: AddSub, SingleOp, MultiArith, SingleEq (Koncel-Kedziorski et al. 2016)", 2065, "number", 1, "",
        as_it_is, licence="none stated", rel_tol=1e-4,
        flaws="No set on the Hub is known to be this one: give a file. 197 rows repeat another one, one of them with "
        "another answer. 217 problems are in asdiv too.",
    ),
    "hmmt_feb25": Benchmark(
        "HMMT February 2025", 30, "expression", 32, "MathArena/hmmt_feb_2025:train", of_matharena,
        licence="CC BY-NC-SA 4.0 (MathArena)", flaws=RECENT.format("February 2025"),
    ),
    "hmmt_nov25": Benchmark(
        "HMMT November 2025", 30, "expression", 32, "MathArena/hmmt_nov_2025:train", of_matharena,
        licence="CC BY-NC-SA 4.0 (MathArena)", flaws=RECENT.format("November 2025"),
    ),
}  # fmt: skip


def table_of_benchmarks() -> str:
    """What --bench list prints: 80 columns."""
    entries = []
    for name, each in BENCHMARKS.items():
        what = f"{name:<15}{each.size:>6,} questions; {each.answers}; avg@{each.samples}"
        if each.rel_tol:
            what += f"; tolerance {each.rel_tol:g}" + (" of fractions" if each.whole_numbers_exact else "")
        told = f"{each.title}. From: {each.hub or 'a file'}. Licence: {each.licence}. {each.flaws}"
        entries.append(what + "\n" + textwrap.fill(told, 80, initial_indent="    ", subsequent_indent="    "))
    entries.append(
        textwrap.fill(
            "avg@N: completions of a question in the papers that report it, and here without --samples. All prompts "
            f"end in: {INSTRUCTION}",
            80,
        )
    )
    return "\n".join(entries)


# ---------------------------------------------------------------------------------------------------------------------
# Reading them
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Where a benchmark's questions come from: a file, or else the Hub."""

    name: str
    file: str = ""

    @property
    def benchmark(self) -> Benchmark:
        return BENCHMARKS[self.name]

    @property
    def data(self) -> str:
        """The file or Hub set, for the result."""
        return self.file or self.benchmark.hub


def named_benchmarks(values: list[str], folder: str | None) -> list[Source]:
    """The sources of --bench a,b c=FILE, with --bench-dir. Raises ConfigError for what is unknown or cannot be had."""
    if folder is not None and not os.path.isdir(folder):
        raise ConfigError(f"--bench-dir {folder}: there is no such folder. It holds JSONL files, NAME.jsonl each.")
    sources: list[Source] = []
    for item in ",".join(values).split(",") if values else []:
        name, given, file = (part.strip() for part in item.partition("="))
        if name not in BENCHMARKS:
            raise ConfigError(
                f"--bench {','.join(values)}: there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}. A "
                "file of another one: --data FILE."
            )
        if given and not os.path.isfile(file):
            raise ConfigError(f"--bench {name}={file}: there is no such file.")
        if any(source.name == name for source in sources):
            raise ConfigError(f"--bench {name}: it is named twice; leave one of them out.")
        source = Source(name, file or file_in(folder, name))
        if not source.data:
            raise ConfigError(
                f"--bench {name}: no set on the Hub is read for it. Name a file: --bench {name}=FILE, or a folder that "
                f"has {name}.jsonl: --bench-dir FOLDER."
            )
        sources.append(source)
    return sources


def file_in(folder: str | None, name: str) -> str:
    """The benchmark's file in --bench-dir; empty without a folder. Raises ConfigError where it is not there."""
    if folder is None:
        return ""
    names = [f"{stem}.jsonl" for stem in (name, *BENCHMARKS[name].files)]
    names += ["gpqa_diamond.csv"] if name == "gpqa_diamond" else []
    found = [path for path in names if os.path.isfile(Path(folder) / path)]
    if not found:
        there = sorted(path.name for path in Path(folder).glob("*.jsonl"))
        has = f"it has {', '.join(there[:20])}" if there else "it has no JSONL file"
        raise ConfigError(f"--bench-dir {folder}: there is no {' or '.join(names)} in it; {has}.")
    return str(Path(folder) / found[0])


def read_benchmark(source: Source, *, skip_bad: bool = False) -> tuple[list[Question], list[str]]:
    """Its questions, each with the benchmark's tolerance, and notes. Raises DataError for rows that cannot be used."""
    flag = f"--bench {source.name}"
    if source.file.lower().endswith(".csv") and source.name == "gpqa_diamond":
        questions, notes = sifted(rows_of_gpqa(Path(source.file)), f"{flag} {source.file}", skip_bad=skip_bad)
    elif source.file:
        questions, notes = read_data([source.file], flag, skip_bad=skip_bad)
    else:
        questions, notes = sifted(converted(source, flag), f"{flag} {source.data}", skip_bad=skip_bad)
    return [with_tolerance(question, source.benchmark) for question in questions], notes


def converted(source: Source, flag: str) -> Iterator[Question | Fault]:
    """The questions of a Hub set."""
    fields = Fields()
    for where, row in rows_of_hub(source.data, flag):
        try:
            yield fields.question(where, source.benchmark.convert(row))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            there = short(", ".join(map(str, row))) or "no fields"
            yield Fault(where, "row", f"the row is not what was expected ({first_line(error)}); it has {there}.")


def with_tolerance(question: Question, benchmark: Benchmark) -> Question:
    """The question with the benchmark's tolerance, where it has none of its own and its gold is not to be exact."""
    exact = benchmark.whole_numbers_exact and re.fullmatch(r"[-+]?[\d,]+", question["answer"].strip())
    if not benchmark.rel_tol or exact or question.get("choices") or question.get("rel_tol") is not None:
        return question
    return {**question, "rel_tol": benchmark.rel_tol}


def rows_of_gpqa(path: Path) -> Iterator[Question | Fault]:
    """The rows of the authors' CSV file. Raises DataError where it is another one."""
    needed = ["Question", "Correct Answer", *(f"Incorrect Answer {number}" for number in (1, 2, 3))]
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            missing = [name for name in needed if name not in (rows.fieldnames or [])]
            if missing:
                raise DataError(
                    f"--bench gpqa_diamond {path}: it lacks the column {missing[0]!r}; give the gpqa_diamond.csv of "
                    "the authors' archive, or JSONL with problem, choices and answer."
                )
            for row in rows:
                where = f"{path}:{rows.line_num}"
                if any(row[name] is None for name in needed):
                    yield Fault(where, "columns", "the row has fewer columns than the head of the file.")
                else:
                    yield checked(of_gpqa(row), where)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"--bench gpqa_diamond {path}: it cannot be read as CSV ({error}).") from error
