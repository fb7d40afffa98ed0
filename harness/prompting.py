"""How prompts look, from flags: a file with a template, arguments of the chat template, and solved examples.

dagrpo.py and evaluate.py have the same flags. A run keeps the contents of the files in its config.json, so that it can
be resumed and measured without them, and evaluate.py takes them from there for the run's model/.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.command import ConfigError
from questions import Question, read_data
from rollout import Example, PromptStyle

LONGEST_TEMPLATE = 1_000_000  # characters
OF_THE_PROGRAM = ("messages", "conversation", "tokenize", "add_generation_prompt", "continue_final_message")


@dataclass(frozen=True)
class Contents:
    """What the files of --prompt-file and --examples say."""

    template: str = ""
    examples: tuple[Example, ...] = ()

    def record(self) -> dict[str, Any]:
        """As config.json has them."""
        examples = [[each.problem, each.solution, list(each.choices)] for each in self.examples]
        return {"template": self.template, "examples": examples}

    def style(self) -> PromptStyle:
        return PromptStyle(template=self.template, examples=self.examples)


def contents_of(prompt_file: str, examples: str) -> Contents:
    """The contents of the files. Raises ConfigError and DataError where they cannot be used."""
    return Contents(read_template(prompt_file) if prompt_file else "", read_examples(examples) if examples else ())


def contents_of_record(record: Mapping[str, Any]) -> Contents:
    """Of what `Contents.record` has made. Raises ValueError, TypeError or LookupError for anything else."""
    examples = tuple(Example(str(each[0]), str(each[1]), tuple(each[2])) for each in record["examples"])
    return Contents(str(record["template"]), examples)


def changed_contents(record: Mapping[str, Any] | None, flags: Mapping[str, Any]) -> dict[str, Any] | None:
    """The kept contents, with those of the files that flags name in their place; None where nothing is left."""
    kept = contents_of_record(record) if record else Contents()
    given = contents_of(flags.get("prompt_file") or "", flags.get("examples") or "")
    changed = Contents(
        given.template if "prompt_file" in flags else kept.template,
        given.examples if "examples" in flags else kept.examples,
    )
    return None if changed == Contents() else changed.record()


def read_template(file: str) -> str:
    """The text of --prompt-file, without the line end behind it. Raises ConfigError where it cannot be a template."""
    try:
        with Path(file).open(encoding="utf-8") as opened:
            text = opened.read(LONGEST_TEMPLATE + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"--prompt-file {file}: it cannot be read ({reason}).") from error
    if len(text) > LONGEST_TEMPLATE:
        raise ConfigError(f"--prompt-file {file}: it has more than {LONGEST_TEMPLATE:,} characters; it is no prompt.")
    if "{problem}" not in text:
        raise ConfigError(
            f"--prompt-file {file}: {{problem}} does not stand in it, so that no question would be asked. It is a "
            "template with {problem} where the question goes, and {choices} where its choices go."
        )
    return text.removesuffix("\n")


def read_examples(file: str) -> tuple[Example, ...]:
    """The solved examples of --examples, JSONL as --data. Raises DataError for lines that cannot be used.

    What is shown of one is its `solution`, or without one its answer in a box.
    """
    questions, _ = read_data([file], "--examples")
    return tuple(example_of(question) for question in questions)


def example_of(question: Question) -> Example:
    solution = question.get("solution") or f"The answer is \\boxed{{{question['answer']}}}."
    return Example(question["problem"], solution, tuple(question.get("choices") or ()))


def arguments_of(values: list[str]) -> dict[str, Any]:
    """The arguments of --template-arg NAME=VALUE; a value is JSON, or else text. Raises ConfigError for others."""
    arguments: dict[str, Any] = {}
    for item in values:
        name, given, value = item.partition("=")
        if not given or not name.isidentifier():
            raise ConfigError(f"--template-arg {item}: it must be NAME=VALUE, such as reasoning_effort=low.")
        if name == "enable_thinking":
            raise ConfigError(f"--template-arg {item}: it is --enable-thinking or --no-enable-thinking here.")
        if name in OF_THE_PROGRAM:
            raise ConfigError(f"--template-arg {item}: {name} is given by the program itself; leave it out.")
        if name in arguments:
            raise ConfigError(f"--template-arg {item}: {name} is given twice; leave one of them out.")
        arguments[name] = json_or_text(value)
    return arguments


def json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def told(style: PromptStyle) -> str:
    """What is not usual about the prompts, in a line; empty where nothing is."""
    parts = []
    if style.system or style.enable_thinking is not None:
        parts.append(f"system prompt {style.system!r}, enable_thinking {style.enable_thinking}")
    if style.arguments:
        parts.append("template arguments " + ", ".join(f"{name}={value!r}" for name, value in style.arguments.items()))
    if style.template:
        first = re.sub(r"\s+", " ", style.template)
        parts.append(f"template {first[:60]!r}" + ("..." if len(first) > 60 else ""))
    if style.examples:
        parts.append(f"{len(style.examples)} examples")
    return "; ".join(parts)
