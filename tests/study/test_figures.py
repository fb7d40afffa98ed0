"""Figures: there whatever is missing, and the same every time."""

from __future__ import annotations

import re

import pytest
from made_up_cells import four_methods

from study import figures


def test_the_figures_bear_a_missing_variant_and_a_length_that_is_not_known(tmp_path):
    pytest.importorskip("matplotlib")
    cells = four_methods()
    paths = figures.draw(cells, tmp_path / "figures")
    names = {name + suffix for name in figures.FIGURES for suffix in (".png", ".svg")}
    assert {path.name for path in paths} == names
    assert all(path.stat().st_size > 5_000 for path in paths)
    # No date, no random names; the names of clip paths hash places whose last digits the layout does not fix.
    clip = re.compile(rb"p[0-9a-f]{10}")
    first = [clip.sub(b"", path.read_bytes()) for path in paths]
    assert [clip.sub(b"", path.read_bytes()) for path in figures.draw(cells, tmp_path)] == first
