"""The list of mistakes that tests must notice: each can still be made."""

from __future__ import annotations

from pathlib import Path

from mutants import TESTS
from mutations import MUTANTS

ROOT = Path(__file__).resolve().parent.parent.parent


def test_what_a_mutation_replaces_stands_once_in_its_file():
    texts = {mutant.file: (ROOT / mutant.file).read_text(encoding="utf-8") for mutant in MUTANTS}
    found = {f"{mutant.file}: {mutant.why}": texts[mutant.file].count(mutant.old) for mutant in MUTANTS}
    assert {name: count for name, count in found.items() if count != 1} == {}


def test_every_file_with_mutations_has_tests_that_exist():
    assert {mutant.file for mutant in MUTANTS} == set(TESTS)
    assert [test for tests in TESTS.values() for test in tests if not (ROOT / test).is_file()] == []
