"""How large the page of a large evaluation is, and how long a browser takes to open and to search it.

    python benchmarks/page.py                       # of MMLU-Pro's size: 12,032 questions, 8 answers each
    python benchmarks/page.py --questions 500       # a quick look

The evaluation is made up: the questions, options and answers are chance sentences with formulas, as long as a small
model's answers to such questions are (--words, of five characters with the blank). A headless Chromium opens the page
three times, each time in a new process. *Opens* is the time from the request for the page until its first questions can
be read, *searches* that from the last key until every text has been gone through.

It needs `pip install playwright` and a chromium in PATH, or its own (`playwright install chromium`).
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.page import write_evaluation

SYLLABLES = ("ba", "ce", "di", "fo", "gu", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "zo", "ka", "le", "mi", "no")
FORMULAS = (r"$x^{2} + 3x = 10$", r"\(\frac{7}{12}\)", r"$\sqrt{2} \le y$", "12 - 5 = 7", r"$\alpha_{1} \cdot 4$")
SUBJECTS = ("biology", "business", "chemistry", "economics", "engineering", "law", "mathematics", "physics")
LIMIT = 1024  # tokens
RARE = "quokka"  # stands in one answer


def vocabulary(rng: random.Random, size: int = 8_000) -> list[str]:
    """Words that are no more alike than those of a language, so that the page packs no better than with real text."""
    return ["".join(rng.choices(SYLLABLES, k=rng.choice((1, 2, 2, 3)))) for _ in range(size)]


def sentence(rng: random.Random, words: list[str], count: int) -> str:
    """Frequent words are frequent, as in a language: the n-th of a list comes up about as often as 1/n."""
    places = [min(int(len(words) ** rng.random()), len(words) - 1) for _ in range(count)]
    parts = [words[place] for place in places]
    for n in range(12, count, 25):
        parts[n] = rng.choice(FORMULAS)
    return " ".join(parts)


def made_up_result(questions: int, samples: int, words: int, seed: int = 0) -> dict[str, Any]:
    """A benchmark as evaluate.py writes it: multiple choice, ten options, levels and subjects."""
    rng = random.Random(seed)
    known = vocabulary(rng)
    rows: list[dict[str, Any]] = []
    for n in range(questions):
        gold = rng.randrange(10)
        extracted = [None if rng.random() < 0.05 else "ABCDEFGHIJ"[gold if rng.random() < 0.4 else rng.randrange(10)]
                     for _ in range(samples)]  # fmt: skip
        lengths = [min(LIMIT, int(rng.lognormvariate(5.2, 0.7)) + 10) for _ in range(samples)]
        rows.append({
            "id": f"question-{n}", "level": 1 + n % 5, "subject": SUBJECTS[n % len(SUBJECTS)],
            "problem": sentence(rng, known, 40) + "?",
            "choices": [sentence(rng, known, 6) for _ in range(10)],
            "answer": "ABCDEFGHIJ"[gold],
            "texts": [f"{sentence(rng, known, max(5, words * length // 200))} \\boxed{{{letter}}}"
                      for length, letter in zip(lengths, extracted, strict=True)],
            "rewards": [float(letter == "ABCDEFGHIJ"[gold]) for letter in extracted],
            "lengths": lengths, "truncated": [length == LIMIT for length in lengths],
            "extracted": extracted, "read": extracted,
        })  # fmt: skip
    rows[questions // 2]["texts"][0] += f" {RARE}"
    right = [reward for row in rows for reward in row["rewards"]]
    figures = {
        "accuracy": statistics.mean(right), "length": statistics.mean(n for row in rows for n in row["lengths"]),
        "truncated": statistics.mean(cut for row in rows for cut in row["truncated"]),
    }  # fmt: skip
    settings = {"model": "made-up", "temperature": 0.6, "samples": samples, "max_new_tokens": LIMIT}
    return {"questions": questions, "max_new_tokens": LIMIT, **figures, "settings": settings, "rows": rows}


def opened(path: Path) -> dict[str, float]:
    """Seconds until the page's first questions stand, and of a search through all its texts, in a new browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        start = time.perf_counter()
        page.goto(path.as_uri(), wait_until="commit")
        page.wait_for_selector("article.question")
        opens = time.perf_counter() - start
        start = time.perf_counter()
        page.fill("input[type=search]", RARE)
        page.locator("p[role=status]", has_text="1 question, 1 to 1 shown").wait_for()
        searches = time.perf_counter() - start
        browser.close()
    return {"opens": opens, "searches": searches}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=12_032)
    parser.add_argument("--samples", type=int, default=8, help="answers of each question")
    parser.add_argument("--words", type=int, default=150, help="of an answer of 200 tokens")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="leave the page in this file")
    options = parser.parse_args(arguments)
    result = made_up_result(options.questions, options.samples, options.words)
    characters = sum(len(text) for row in result["rows"] for text in row["texts"])
    with tempfile.TemporaryDirectory() as folder:
        path = options.keep or Path(folder) / "page.html"
        start = time.perf_counter()
        write_evaluation({"made-up": result}, path)
        seconds = time.perf_counter() - start
        answers = options.questions * options.samples
        print(
            f"{answers:,} answers of {characters / answers:,.0f} characters on average, {characters / 1e6:.1f} million"
        )
        print(f"the page: {path.stat().st_size / 1e6:.1f} MB, written in {seconds:.1f} s")
        try:
            times = [opened(path) for _ in range(options.runs)]
        except ImportError:
            sys.exit("page.py: without a browser nothing can be timed: pip install playwright, and a chromium in PATH.")
    for name in ("opens", "searches"):
        values = [each[name] for each in times]
        print(f"{name}: median {statistics.median(values):.2f} s of {', '.join(f'{value:.2f}' for value in values)}")


if __name__ == "__main__":
    main()
