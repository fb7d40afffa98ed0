"""A page to look at: of an evaluation every question with its answers, of a training run its curves and groups.

    python -m harness.page RESULT.json --against OTHER.json      # what evaluate.py --out wrote -> RESULT.html
    python -m harness.page RUN                                   # the folder of a run -> RUN/page.html

The page is one file that loads nothing from elsewhere. Its style and its program are in harness/html/; the data is in
it as JSON, and the program writes all of it as text, never as HTML.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import html
import os
import sys
from pathlib import Path

from harness.checkpoint import write_whole
from harness.command import ConfigError, Parser, one_sentence, parsed, printable
from harness.page_data import Blocks, Overview, dumped, evaluation_overview, run_overview
from harness.results import Result, by_short_name, check_result, read_results, settings_of

PARTS = Path(__file__).resolve().parent / "html"
STYLE = ("page.css",)
PROGRAM = ("page.js", "tex.js", "evaluation.js", "run.js", "start.js")  # in the order in which they stand in the page
MADE_HERE = '<meta name="generator" content="dagrpo harness.page">'


def check_out(file: str, flag: str) -> None:
    """Raise ConfigError where the page cannot be written, or would replace a file that is no page of this program."""
    path = Path(file)
    if not file.strip():
        raise ConfigError(f"{flag}: the name of the file is empty.")
    if os.path.isdir(path) or file.endswith(("/", os.sep)):
        raise ConfigError(f"{flag} {file}: it is a folder; name a file in it, such as {path / 'page.html'}.")
    if path.is_file() and path.stat().st_size and not is_page(path):
        raise ConfigError(
            f"{flag} {file}: there is a file that is no page of this program. Give another name, or delete it."
        )
    there = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not os.path.isdir(there):
        raise ConfigError(f"{flag} {file}: {there} is not a folder.")
    if not os.access(path if os.path.exists(path) else there, os.W_OK):
        raise ConfigError(f"{flag} {file}: nothing can be written there. Give another place.")


def is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return MADE_HERE.encode() in file.read(1_000)


def write_evaluation(
    results: dict[str, Result],
    path: Path,
    against: dict[str, Result] | None = None,
    names: tuple[str, str] | None = None,
) -> None:
    """Write the page of an evaluation, as evaluate.py has it in its result file; with `against`, beside another one.

    `names` say what the two are called; without them, their models. Raises DataError where they share no question.
    """
    sides = [by_short_name(each) for each in (results, against) if each is not None]
    for side in sides:
        for name, result in side.items():
            check_result(result, name)
    names = names or (model_of(sides[0], "this one"), model_of(sides[-1], "the other"))
    blocks = Blocks()
    overview = evaluation_overview(sides[0], sides[1] if len(sides) > 1 else None, names, blocks)
    write_page("Evaluation: " + " against ".join(overview["names"]), {"evaluation": overview}, blocks, path)


def write_run(folder: Path, path: Path) -> None:
    """Write the page of a training run. Raises DataError where the folder holds none."""
    blocks = Blocks()
    overview = run_overview(folder, blocks)
    write_page(f"Training run: {overview['name']}", {"run": overview}, blocks, path)


def model_of(results: dict[str, Result], otherwise: str) -> str:
    """The name of the model, if the file says it."""
    model = next((settings_of(result).get("model") for result in results.values()), None)
    return str(model) if model else otherwise


def write_page(title: str, overview: Overview, blocks: Blocks, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page_of(title, overview, blocks))


def page_of(title: str, overview: Overview, blocks: Blocks) -> str:
    """The page as text. No text of the data is in it but as JSON without a `<`, which no HTML can begin in.

    Its policy lets run the one program whose hash it names, and nothing be loaded; so even a text that did become HTML
    could do nothing.
    """
    style, program = (
        "\n".join((PARTS / name).read_text(encoding="utf-8") for name in names) for names in (STYLE, PROGRAM)
    )
    policy = f"default-src 'none'; style-src {hash_of(style)}; script-src {hash_of(program)}"
    packed = "\n".join(
        f'<script type="text/plain" id="block-{number}">{block}</script>' for number, block in enumerate(blocks.packed)
    )
    safe = dumped(overview).replace("<", "\\u003c").encode("utf-8", "replace").decode("utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{MADE_HERE}
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(printable(title))}</title>
<style>{style}</style>
</head>
<body>
<main id="page"><noscript>This page is drawn by its own program: allow JavaScript to see it.</noscript></main>
<script type="application/json" id="overview">{safe}</script>
{packed}
<script>{program}</script>
</body>
</html>
"""


def hash_of(text: str) -> str:
    """What a Content-Security-Policy names a style or a program by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"


def options_of(arguments: list[str]) -> argparse.Namespace:
    """The flags of the command line. Raises ConfigError for what is unknown or does not go together."""
    parser = Parser(
        prog="python -m harness.page",
        usage="python -m harness.page RUN | RESULT.json [--against OTHER.json] [--out FILE]",
        description="Write a page of a training run, or of an evaluation: one HTML file.",
        allow_abbrev=False,
    )
    parser.add_argument("source", help="the folder of a run, or a file that evaluate.py --out wrote")
    parser.add_argument("--against", metavar="OTHER.json", help="another such file, to be seen side by side")
    parser.add_argument("--out", metavar="FILE", help="the page; page.html in the run, or RESULT.html without it")
    options = parsed(parser, arguments, {})
    is_run = os.path.isdir(options.source)
    if is_run and options.against is not None:
        raise ConfigError(
            f"--against {options.against}: {options.source} is a run; only two result files can be compared."
        )
    if options.out is None:
        source = Path(options.source)
        options.out = str(source / "page.html" if is_run else source.with_suffix(".html"))
    check_out(options.out, "--out")
    return options


def main(arguments: list[str] | None = None) -> None:
    with one_sentence("harness.page"):
        options = options_of(sys.argv[1:] if arguments is None else arguments)
        source, out = Path(options.source), Path(options.out)
        if source.is_dir():
            write_run(source, out)
        else:
            results = read_results(source)
            against = read_results(Path(options.against)) if options.against is not None else None
            write_evaluation(results, out, against, (source.stem, Path(options.against or source).stem))
        print(printable(str(out)))


if __name__ == "__main__":
    main()
