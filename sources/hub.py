"""Data sets of the Hub as rows, through the optional package `datasets`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

from sources.faults import DataError, first_line


def rows_of_hub(source: str, flag: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of name[/configuration][:split]; without a split, train.

    Of several configurations one must be named, unless one of them is called main or default. Raises DataError where it
    is not, with their names.
    """
    path, _, split = source.partition(":")
    name, configuration = "/".join(path.split("/")[:2]), "/".join(path.split("/")[2:])
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            f"{flag} {source}: there is no such file, and to read a Hub data set one more package is needed. "
            "Run: pip install datasets"
        )
    import datasets

    try:
        configurations = datasets.get_dataset_config_names(name)
    except Exception as error:  # of the library: without a network, without the set, for a name that is none
        raise DataError(
            f"{flag} {source}: there is no such file, and no such set on the Hub, or no network ({first_line(error)})."
        ) from error
    usual = [each for each in configurations if each in ("main", "default")] or configurations
    if configuration not in configurations and (configuration or len(usual) > 1):
        what = f"there is no configuration {configuration!r}" if configuration else "it has several configurations"
        listed = ", ".join(f"{name}/{each}" for each in configurations)
        raise DataError(f"{flag} {source}: {what}; name one of {listed}.")
    configuration = configuration or usual[0]
    try:
        table = datasets.load_dataset(name, configuration, split=split or "train")
    except Exception as error:
        raise DataError(f"{flag} {source}: it cannot be read ({first_line(error)}).") from error
    for number, fields in enumerate(table, start=1):
        yield f"{source}:{number}", dict(fields)
