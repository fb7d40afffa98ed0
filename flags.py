"""Command-line flags from the fields of a dataclass: help, types, ranges, and errors that say what to do."""

from __future__ import annotations

import argparse
import difflib
import math
from dataclasses import field, fields
from typing import Any


class ConfigError(ValueError):
    """A flag that is unknown or out of range; the message names flag, value and what is allowed."""


def flag(default: Any, reason: str, **rules: Any) -> Any:
    """A field of the dataclass: its default and its reason, the text of --help.

    Rules: `least`, `most` or `above` bound a number; `word` is allowed beside numbers; `choices` are all there are;
    `group` opens a new heading of --help.
    """
    metadata = {"reason": reason, **rules}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_ranges(config: Any) -> None:
    """Raise ConfigError for the first field that is out of its range."""
    for item in fields(config):
        value, rules = getattr(config, item.name), item.metadata
        allowed = []
        if "choices" in rules:
            allowed.append("one of " + ", ".join(rules["choices"]))
            right = value in rules["choices"]
        elif "least" in rules or "above" in rules:
            low, high = rules.get("least", rules.get("above")), rules.get("most")
            allowed.append(f"{'a whole number' if item.type == 'int' else 'a number'}")
            allowed[-1] += f" {'of at least' if 'least' in rules else 'above'} {low}"
            allowed[-1] += f" and at most {high}" if high is not None else ""
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            right = number and (value >= low if "least" in rules else value > low) and (high is None or value <= high)
            if "word" in rules:
                allowed.append(f"the word {rules['word']}")
                right = right or value == rules["word"]
        else:
            continue
        if not right:
            raise ConfigError(f"{flag_name(item.name)} {value}: it must be {', or '.join(allowed)}.")


def flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")


def parse(config_class: Any, description: str, arguments: list[str]) -> dict[str, Any]:
    """The fields that a command line sets, by name. Raises ConfigError for an unknown flag or for a missing value."""
    parser = argparse.ArgumentParser(
        prog="dagrpo.py",
        usage="python dagrpo.py [--model MODEL --data FILE] [flags]",
        description=description,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=110, max_help_position=34),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    group: Any = parser
    for item in fields(config_class):
        rules = item.metadata
        if "group" in rules:
            group = parser.add_argument_group(rules["group"])
        if item.type == "bool":
            group.add_argument(flag_name(item.name), action=argparse.BooleanOptionalAction, help=rules["reason"])
            continue
        shown = (
            ""
            if item.default in ("", "default") or not isinstance(item.default, str | int | float)
            else f" [{item.default}]"
        )
        choices = "|".join(rules["choices"]) if "choices" in rules else None
        options = {"nargs": "+"} if item.type == "list[str]" else {}
        group.add_argument(
            flag_name(item.name), metavar=choices or item.name.upper(), help=rules["reason"] + shown, **options
        )
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        names = [flag_name(item.name) for item in fields(config_class)]
        near = difflib.get_close_matches(unknown[0].split("=")[0], names, n=1)
        hint = f" Did you mean {near[0]}?" if near else " --help lists them all."
        raise ConfigError(f"{unknown[0]}: there is no such flag.{hint}")
    values = vars(known)
    for item in fields(config_class):
        if item.name in values:
            values[item.name] = converted(item, values[item.name])
    return values


def converted(item: Any, value: Any) -> Any:
    """The text of a flag as the field's type; what cannot be read stays text, for `check` to name."""
    kinds = {"int": int, "float": float, "float | str": float}
    try:
        return kinds[item.type](value) if item.type in kinds else value
    except ValueError:
        return value
