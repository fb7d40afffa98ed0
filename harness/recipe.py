"""Recipes: settings of a run in a TOML file, each with its reason beside it.

    python dagrpo.py --recipe recipes/embedded.toml

A line is the name of a flag, with hyphens or underscores, and its value: `learning-rate = 2e-6`. Flags of the command
line go before it.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from harness.command import LIKE, ConfigError

NOT_IN_A_RECIPE = ("recipe", "resume", "force")  # they are of one command
EXPECTED = {
    "int": (int, "a whole number"),
    "float": (int | float, "a number"),
    "str": (str, "text in quotes"),
    "bool": (bool, "true or false"),
    "list[str]": (list, "text in quotes, or a list of such"),
}


def read_recipe(file: str, config: type) -> dict[str, Any]:
    """The settings of a recipe by the name of their field in `config`, which is harness.config.Config.

    Raises ConfigError for a file that is not there or no TOML, an unknown setting, and a value of the wrong kind.
    """
    try:
        given = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--recipe {file}: it cannot be read ({error.strerror}).") from error
    except ValueError as error:  # what is not UTF-8 too
        raise ConfigError(f"--recipe {file}: it is not TOML ({error}); a line is such as: steps = 200") from error
    flags = [item for item in fields(config) if "reason" in item.metadata]
    known = {item.name: item for item in flags if item.name not in NOT_IN_A_RECIPE}
    settings: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=LIKE)
            hint = (
                f" Did you mean {near[0].replace('_', '-')}?" if near else " `python dagrpo.py --help` lists them all."
            )
            raise ConfigError(f"--recipe {file}: there is no setting {key}.{hint}")
        if name in settings:
            raise ConfigError(f"--recipe {file}: {name.replace('_', '-')} is given twice; leave one of them out.")
        settings[name] = read_value(value, known[name], f"--recipe {file}: {key} = {value!r}")
    return settings


def read_value(value: Any, item: Any, where: str) -> Any:
    """The value as the field has it. Raises ConfigError, which begins with `where`, for one of another kind."""
    if value == "none" and item.metadata.get("none"):
        return None
    kind, said = EXPECTED[item.type.removesuffix(" | None")]
    if kind is list and isinstance(value, str):
        return [value]
    right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if kind is list:
        right = right and all(isinstance(each, str) for each in value)
    if not right:
        or_none = ', or "none"' if item.metadata.get("none") else ""
        raise ConfigError(f"{where}: it must be {said}{or_none}.")
    return value
