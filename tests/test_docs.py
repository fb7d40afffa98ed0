"""What the pages and docstrings name exists: functions, flags of commands, files behind links."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

import dagrpo
import evaluate
from harness.config import ConfigError, configure, parse

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
PAGES += [ROOT / room / "README.md" for room in ("verify", "study", "recipes")]
ROOMS = ("policy", "verify", "sources", "scorers", "harness", "study", "benchmarks")  # scale/ needs TRL
SOURCES = sorted(ROOT.glob("*.py")) + [path for room in ROOMS for path in sorted((ROOT / room).glob("*.py"))]
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in SOURCES]
NOT_FLAGS = {"--index-url", "--no-deps", "--check"}  # of pip and ruff
# programs whose commands have flags of their own
OTHERS = "accelerate launch|trl|trackio|tensorboard|wandb|vllm|lm_eval|lighteval|hf"
OF_OTHERS = re.compile(rf"`(?:{OTHERS}) [^`]*`|^ {{4}}(?:{OTHERS}) (?:.*\\\n)*.*$", re.MULTILINE)


def docstrings(path: Path) -> list[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kinds)]
    return [text for node in nodes if (text := ast.get_docstring(node, clean=False))]


def texts() -> list[tuple[str, str]]:
    """(where, text) of every page, and of the docstrings of every module."""
    pages = [(path.name, path.read_text(encoding="utf-8")) for path in PAGES]
    return pages + [(path.name, "\n".join(docstrings(path))) for path in SOURCES]


# ---------------------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------------------


def test_every_function_that_is_named_with_its_module_exists():
    longest_first = "|".join(sorted(map(re.escape, MODULES), key=len, reverse=True))
    named = re.compile(rf"(?<![\w./]){'(' + longest_first + ')'}\.([a-zA-Z_]\w*)(?![\w/])(?!\.(?:py|md|jsonl?))")
    missing, found = [], 0
    for where, text in texts():
        for module, name in named.findall(text):
            if name in ("py", "md", "json", "jsonl", "svg", "png") or f"{module}.{name}" in MODULES:
                continue
            found += 1
            if not hasattr(importlib.import_module(module), name):
                missing.append(f"{where}: {module}.{name}")
    assert not missing and found > 40


def test_every_name_in_backticks_is_a_name_of_the_project():
    """`scoring.rectify` and `test_methods_are_…` alike: what CONTRIBUTING.md sends a reader to is there."""
    sources = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    words = re.findall(r"`([A-Za-z_]\w{5,})`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len(words) > 10
    assert not [word for word in words if not re.search(rf"\b{word}\b", code)]


def test_every_relative_link_leads_to_a_file():
    dead, found = [], 0
    for path in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            if not target.startswith(("http", "#")):
                found += 1
                if not (path.parent / target.partition("#")[0]).exists():
                    dead.append(f"{path.name}: {target}")
    assert not dead and found > 12


def test_every_file_that_the_readme_lists_is_there():
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## Files")[1].split("Not here:")[0]
    listed = re.findall(r"^    (\S+)  ", tree, re.MULTILINE)
    assert len(listed) > 10 and all((ROOT / name).exists() for name in listed)
    modules = {path.name for path in ROOT.glob("*.py")}
    folders = {path.name + "/" for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "_"))}
    assert modules | (folders - {"runs/"}) <= set(listed) | {"build/", "dagrpo.egg-info/"}


# ---------------------------------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------------------------------


def commands() -> list[str]:
    """Every `python ...` command line of the pages and docstrings, without its comment."""
    found = []
    for _, text in texts():
        joined = re.sub(r"\\+\n\s*", " ", text)
        lines = re.findall(r"^ {4}(?:.* && )?python ((?:-m [\w.]+|[\w/.]+\.py).*)$", joined, re.MULTILINE)
        inline = re.findall(r"`python\s+((?:-m [\w.]+|[\w/.]+\.py)[^`]*)`", joined)
        found += [" ".join(line.partition("  ")[0].split()) for line in lines] + [" ".join(c.split()) for c in inline]
    return sorted(set(found))


def help_of(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> str:
    """What the command prints with --help behind its subcommand, if it has one."""
    subcommand = [arguments[0]] if arguments and re.fullmatch(r"[a-z-]+", arguments[0]) else []
    monkeypatch.setattr(sys, "argv", [module, *subcommand, "--help"])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(module).main()
    if stop.value.code != 0 and subcommand:  # a word that is no subcommand: an argument
        return help_of(module, [], monkeypatch, capsys)
    return capsys.readouterr().out


def test_the_flags_of_every_command_are_there(monkeypatch, capsys):
    checked = 0
    for command in commands():
        script, *arguments = shlex.split(command.replace("...", ""))
        if script == "-m":
            script, *arguments = arguments
        flags = {word.split("=")[0] for word in arguments if word.startswith("--") and word != "--help"}
        checked += 1
        if script == "dagrpo.py":
            if "--help" not in arguments:
                configure(**parse(arguments))
            continue
        module = script.removesuffix(".py").replace("/", ".")
        if module in ("venv", "tests.golden"):
            continue
        shown = help_of(module, arguments, monkeypatch, capsys)
        for flag in flags:
            assert re.search(rf"(?<![\w-]){flag}(?![\w-])", shown), f"{command}: {flag}"
    assert checked > 25


def test_every_flag_that_a_page_names_is_a_flag_of_some_command(monkeypatch, capsys):
    shown = ""
    for main in (dagrpo.main, evaluate.main):
        with pytest.raises(SystemExit):
            main(["--help"])
        shown += capsys.readouterr().out
    for command in commands():
        script, *arguments = shlex.split(command.replace("...", ""))
        module = (arguments.pop(0) if script == "-m" else script).removesuffix(".py").replace("/", ".")
        if module not in ("venv", "dagrpo", "evaluate", "tests.golden"):
            shown += help_of(module, arguments, monkeypatch, capsys)
    for path in PAGES:
        text = OF_OTHERS.sub("", path.read_text(encoding="utf-8"))
        for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)) - NOT_FLAGS:
            assert re.search(rf"(?<![\w-]){flag}(?![\w-])", shown), f"{path.name}: {flag}"


def test_settings_in_backticks_are_accepted():
    """`--rectify pair`, `--threshold 0.35`: each by itself is a run."""
    tried = 0
    for path in [page for page in PAGES if page.name != "evaluation.md"]:  # its flags are those of evaluate.py
        for setting in set(re.findall(r"`(--[a-z][a-z0-9-]+ [\w.]+)`", path.read_text(encoding="utf-8"))):
            flag = setting.split()[0]
            if flag in (
                "--against",
                "--bench",
                "--bench-dir",
                "--shuffle-options",
                "--side",
                "--mean",
                "--model",
                "--reward",
                "--only",
                "--judge-model",
            ):
                continue
            tried += 1
            try:
                configure(**parse(setting.split()))
            except ConfigError as error:
                pytest.fail(f"{path.name}: {setting}: {error}")
    assert tried > 20
