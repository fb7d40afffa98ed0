"""What the cells of the study say, as figures: learning curves, variants by benchmarks, methods by task, and the
language model of study.words as it learns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from study.tables import (
    BASELINES,
    MEANS,
    METHODS,
    ORIGINALS,
    REFERENCE,
    TASKS,
    Cell,
    Cells,
    accuracies,
    cells_of_task,
    mean,
    mean_and_interval,
    number,
)
from study.tasks import BENCHMARKS, IN_DISTRIBUTION

SHOWN = {
    "sft": "SFT", "grpo": "GRPO", "dr_grpo": "Dr. GRPO", "dapo": "DAPO, 1 update", "luffy": "LUFFY, 1 update",
    "dapo-4-updates": "DAPO", "luffy-2-updates": "LUFFY", "dagrpo": "DaGRPO",
}  # fmt: skip

SHOWN_WORDS = {**SHOWN, "sft-grpo": "SFT, then GRPO"}


def band(cells: dict[int, Cell], curve: str) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
    """(steps, mean, low, high) of a validation curve, with 95 % intervals over seeds. (S,) each

    With one seed, low and high are the mean.
    """
    curves = [cell["validation"] for cell in cells.values()]
    values = np.array([validation[curve] for validation in curves], dtype=float)  # (seeds, S)
    figures = np.array([mean_and_interval(column[~np.isnan(column)]) for column in values.T])  # (S, 3)
    figures = np.where(np.isnan(figures), figures[:, :1], figures)
    return curves[0]["steps"], figures[:, 0], figures[:, 1], figures[:, 2]


def draw(of: Any, folder: Path, figures: Mapping[str, Callable[[Any, Any], None]]) -> list[Path]:
    """Write figures as PNG and SVG; returns their paths. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"font.size": 8, "svg.hashsalt": "study"})  # the salt: the same SVG every time
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        figure(of, pyplot)
        for suffix in (".png", ".svg"):
            paths.append(folder / (name + suffix))
            metadata = {"Date": None} if suffix == ".svg" else None
            pyplot.savefig(paths[-1], dpi=200, bbox_inches="tight", metadata=metadata)
        pyplot.close()
    return paths


def learning_figure(cells: Cells, pyplot: Any) -> None:
    """DaGRPO beside each baseline: accuracy on the validation set; last, the length of right completions."""
    baselines = [ORIGINALS[name] if cells.get(ORIGINALS.get(name, "")) else name for name in BASELINES]
    panels = [(name, "accuracy") for name in baselines if cells.get(name)] + [(REFERENCE, "right_length")]
    rows = math.ceil(len(panels) / 3)
    figure, axes = pyplot.subplots(rows, 3, figsize=(8, 2.3 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (baseline, curve) in zip(axes.flat, panels, strict=False):
        for variant, style, shade in ((baseline, "--", "0.75"), ("dagrpo", "-", "0.55")):
            if not cells.get(variant):
                continue
            steps, middle, low, high = band(cells[variant], curve)
            scale = 100 if curve == "accuracy" else 1
            axis.fill_between(steps, scale * low, scale * high, color=shade, alpha=0.5, linewidth=0)
            axis.plot(steps, scale * middle, style, color="black", label=SHOWN[variant], linewidth=1.2)
        if curve == "accuracy":
            axis.set_ylim(0, 100)
        axis.set_xlabel("step")
        axis.set_ylabel("validation accuracy, %" if curve == "accuracy" else "tokens of right answers")
        axis.legend(frameon=False)
    seeds = sorted({len(cells[name]) for name in METHODS if cells.get(name)})
    figure.suptitle(f"Mean and 95 % interval over {' to '.join(map(str, seeds[:1] + seeds[1:][-1:]))} seeds")


def benchmark_figure(cells: Cells, pyplot: Any) -> None:
    """Variant by benchmark: sampled accuracy in percent, darker is higher, each number in its field."""
    columns = [*BENCHMARKS, *MEANS]
    values = np.array(
        [[mean(list(accuracies(by_seed, n, "sampled").values())) for n in columns] for by_seed in cells.values()]
    )
    _, axis = pyplot.subplots(figsize=(8, 0.8 + 0.28 * len(cells)))
    axis.imshow(100 * values, cmap="Greys", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(100 * values):
        axis.text(column, row, number(value), ha="center", va="center", color="white" if value > 55 else "black")
    axis.set_xticks(range(len(columns)), [name.replace(" of ", "\nof ") for name in columns])
    axis.set_yticks(range(len(cells)), [SHOWN.get(variant, variant) for variant in cells])
    axis.axvline(len(IN_DISTRIBUTION) - 0.5, color="black", linewidth=1)
    axis.axvline(len(BENCHMARKS) - 0.5, color="black", linewidth=1)
    axis.tick_params(length=0)
    k = max(cell["configuration"]["samples"] for by_seed in cells.values() for cell in by_seed.values())
    axis.set_title(f"avg@{k}, percent, mean over seeds")


def task_figure(cells: Cells, pyplot: Any) -> None:
    """Mean of nine by task: what learns from solutions, and as grey lines what does not."""
    figure, axis = pyplot.subplots(figsize=(5, 3.4), layout="constrained")
    by_task = [cells_of_task(cells, ending) for ending in TASKS]
    styles = {"sft": ("s", ":", "white"), "luffy": ("^", "--", "0.6"), "dagrpo": ("o", "-", "black")}
    for number_of_method, (method, (marker, line, fill)) in enumerate(styles.items()):
        places, figures = [], []
        for place, variants in enumerate(by_task):
            if method in variants:
                values = np.array(list(accuracies(variants[method], "mean of nine", "sampled").values()))
                places.append(place + 0.04 * (number_of_method - 1))  # so that bars do not hide each other
                figures.append(100 * np.array(mean_and_interval(values)))
        if places:
            middle, low, high = np.array(figures).T
            axis.errorbar(
                places, middle, [middle - low, high - middle], marker=marker, linestyle=line, color="black",
                markerfacecolor=fill, capsize=2, linewidth=1, label=SHOWN[method],
            )  # fmt: skip
    for name, line in (("grpo", "-"), ("dr_grpo", "--")):
        there = {place: variants[name] for place, variants in enumerate(by_task) if variants.get(name)}
        middles = [
            100 * mean(list(accuracies(by_seed, "mean of nine", "sampled").values())) for by_seed in there.values()
        ]
        if there:  # other means by task only where there are other seeds
            axis.plot(
                list(there),
                middles,
                color="0.6",
                linestyle=line,
                linewidth=1,
                label=f"{SHOWN[name]}, without solutions",
            )
    axis.set_xticks(range(len(TASKS)), ["\n".join(textwrap.wrap(title, 13)) for title in TASKS.values()])
    axis.set(ylabel="mean of nine benchmarks, %", ylim=(0, 100), title="What the solutions do to each method")
    figure.legend(frameon=False, loc="outside lower center", ncols=3, fontsize=7)


LINES = {"dagrpo": "-", "grpo": "--", "sft-grpo": "-.", "sft": ":"}
TOGETHER = 5  # steps of which a mean is shown: each has other questions


def words_figure(lines: list[dict[str, Any]], pyplot: Any) -> None:
    """Of a language model: reward by step, accuracy on the way, and displacement under DaGRPO. Means over seeds."""
    _, (rewards, accuracies_of, shares) = pyplot.subplots(1, 3, figsize=(8, 2.6), layout="constrained")
    for variant, style in LINES.items():
        runs = [line for line in lines if line["variant"] == variant]
        if not runs:
            continue
        shown = {"color": "black", "linewidth": 1.2, "label": SHOWN_WORDS[variant]}
        if "reward" in runs[0]["curves"]:
            rewards.plot(*smoothed(runs, "reward"), style, **shown)
        accuracies_of.plot(*on_the_way(runs), style, marker="o", markersize=3, **shown)
    ours = [line for line in lines if line["variant"] == "dagrpo"]
    for name, label, style in (
        ("displaced_by_batch", "DaGRPO, by the batch", "-"), ("displaced", "by their group", "--"),
        ("displaced_left", "by it after masking", ":"),
    ):  # fmt: skip
        if ours and name in ours[0]["curves"]:
            shares.plot(*smoothed(ours, name), style, color="black", linewidth=1.2, label=label)
    rewards.set(xlabel="step", ylabel=f"reward, % (mean of {TOGETHER} steps)", ylim=(0, 100))
    accuracies_of.set(xlabel="step", ylabel="validation accuracy, %", ylim=(0, 100))
    shares.set(xlabel="step", ylabel="right answers displaced, %", ylim=(0, 100))
    for axis in (rewards, accuracies_of, shares):
        axis.legend(frameon=False, fontsize=6)


def on_the_way(runs: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """(steps, percent): validation accuracy, the mean over the runs; counted are all steps, of fine-tuning too."""
    points = np.array([run["validation"] for run in runs], dtype=float)  # (seeds, evaluations, 2)
    steps = points[0, :, 0]
    return steps + runs[0]["steps"] - steps[-1], 100 * points[:, :, 1].mean(0)


def smoothed(runs: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, percent): means over TOGETHER steps and over the runs, of the steps that have the figure."""
    curves = np.array([run["curves"][name] for run in runs], dtype=float)  # (seeds, S)
    steps = np.arange(1, curves.shape[1] + 1)
    there = ~np.isnan(curves).all(0)
    first = int(there.argmax())
    windows = [slice(max(first, end - TOGETHER), end) for end in range(first + 1, len(steps) + 1)]
    means = [np.nanmean(curves[:, window]) if there[window].any() else np.nan for window in windows]
    return steps[first:], 100 * np.array(means)


WORDS_FIGURES = {"words": words_figure}
FIGURES = {"study-learning": learning_figure, "study-benchmarks": benchmark_figure, "study-tasks": task_figure}
