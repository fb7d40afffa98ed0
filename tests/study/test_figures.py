"""Figures: there whatever is missing, and the same every time."""

from __future__ import annotations

import pytest
from conftest import same_drawing
from made_up_cells import four_methods

from study import figures


def test_the_figures_bear_a_missing_variant_and_a_length_that_is_not_known(tmp_path):
    pytest.importorskip("matplotlib")
    cells = four_methods()
    paths = figures.draw(cells, tmp_path / "figures")
    names = {name + suffix for name in figures.FIGURES for suffix in (".png", ".svg")}
    assert {path.name for path in paths} == names
    assert all(path.stat().st_size > 5_000 for path in paths)
    for first, again in zip(paths, figures.draw(cells, tmp_path), strict=True):
        if first.suffix == ".svg":
            assert same_drawing(first.read_text(), again.read_text()), "no date, no random names"
        else:
            assert first.read_bytes() == again.read_bytes()
