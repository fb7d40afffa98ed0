"""Figures: there whatever is missing, and the same every time."""

from __future__ import annotations

import pytest
from conftest import same_drawing
from made_up_cells import four_methods

from study import figures


def test_the_figures_bear_a_missing_variant_and_a_length_that_is_not_known(tmp_path):
    pytest.importorskip("matplotlib")
    cells = four_methods()
    paths = figures.draw(cells, tmp_path / "figures", figures.FIGURES)
    names = {name + suffix for name in figures.FIGURES for suffix in (".png", ".svg")}
    assert {path.name for path in paths} == names
    assert all(path.stat().st_size > 5_000 for path in paths)
    for first, again in zip(paths, figures.draw(cells, tmp_path, figures.FIGURES), strict=True):
        if first.suffix == ".svg":
            assert same_drawing(first.read_text(), again.read_text()), "no date, no random names"
        else:
            assert first.read_bytes() == again.read_bytes()


def words_line(variant: str, seed: int, **curves: list[float]) -> dict:
    return {"variant": variant, "seed": seed, "steps": 4, "validation": [[2, 0.25], [4, 0.5]], "curves": curves}


def test_the_figure_of_a_language_model_bears_methods_without_a_reward(tmp_path):
    pytest.importorskip("matplotlib")
    nan = float("nan")
    lines = [
        words_line("dagrpo", 1, reward=[0.0, 0.25, 0.5, 0.75], displaced=[0.5, nan, 0.0, 0.0]),
        words_line("sft", 1),
        words_line("sft-grpo", 1, reward=[nan, nan, 0.5, 0.75]),
        {"variant": "start", "seed": 1, "validation": [], "curves": {}},
    ]
    png, svg = figures.draw(lines, tmp_path, figures.WORDS_FIGURES)
    assert (png.name, svg.name) == ("words.png", "words.svg") and png.stat().st_size > 5_000


def test_evaluations_of_grpo_behind_fine_tuning_are_counted_from_the_first_step_of_both():
    first, second = words_line("grpo", 1), words_line("grpo", 2)
    second["validation"] = [[2, 0.75], [4, 0.5]]
    steps, percent = figures.on_the_way([first, second])
    assert steps.tolist() == [2, 4] and percent.tolist() == [50, 50]
    steps, _ = figures.on_the_way([{**first, "steps": 5}])
    assert steps.tolist() == [3, 5]


def test_a_smoothed_curve_begins_with_the_first_step_that_has_the_figure():
    nan = float("nan")
    runs = [words_line("a", 1, reward=[nan, nan, 0.5, 0.75]), words_line("a", 2, reward=[nan, nan, 0.0, nan])]
    steps, percent = figures.smoothed(runs, "reward")
    assert steps.tolist() == [3, 4] and percent.tolist() == pytest.approx([25.0, 100 * (0.5 + 0.75 + 0.0) / 3])
    steps, percent = figures.smoothed([words_line("a", 1, reward=[k / 10 for k in range(8)])], "reward")
    assert percent[0] == 0 and percent[-1] == pytest.approx(100 * 0.5)  # the mean of 0.3 to 0.7
