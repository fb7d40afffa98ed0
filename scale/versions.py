"""Is TRL there, in a version that the trainer is tested with? Imports nothing of it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

OLDEST, NEWEST = "1.12", "1.16"  # the tests of tests/scale pass with both; the trainer overrides methods between
INSTALL = f'pip install "trl>={OLDEST},<={NEWEST}.99"'


def fault_of_trl() -> str:
    """What is wrong with TRL as it is installed, and what to do; nothing where it can be used."""
    try:
        installed = Version(version("trl"))
    except PackageNotFoundError:
        return f"the package trl is missing. Run: {INSTALL}"
    if Version(OLDEST) <= installed and installed.release[:2] <= Version(NEWEST).release:
        return ""
    return f"trl is {installed}; it must be of {OLDEST} to {NEWEST}. Run: {INSTALL}"
