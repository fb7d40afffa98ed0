"""Draw groups of a run: completions, how distinct each pair is, which pairs are masked, and what advantage is left.

    python dagrpo.py --steps 1 --out runs/picture
    python benchmarks/picture.py runs/picture --out docs/group        (pip install matplotlib)

It draws what the run wrote into samples.jsonl: of each step the group with most masked pairs, and the first other one
with an anchor. They are no average groups. Two files are written, FILE.png and FILE.svg.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.command import one_sentence
from harness.samples import Group, groups_of, masking_of, sorted_by_reward, unmasked_advantages

WRAP = 52  # characters of a completion in a line of the figure
LINES = 2  # of a completion; longer ones are cut in the middle


def shortened(text: str) -> str:
    """At most LINES lines of WRAP characters; the end stays, as the final answer is there."""
    lines = textwrap.wrap(" ".join(text.split()), WRAP)
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], "… " + " ".join(lines)[-(WRAP - 2) :]]
    return "\n".join(lines)


def draw(groups: list[Group], scale: str, masking: str, out: Path) -> list[Path]:
    """Write the figure as PNG and SVG; returns their paths. `masking`: see `samples.masking_of`. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"font.size": 7, "svg.hashsalt": "group"})  # the salt: the same SVG every time
    from matplotlib import pyplot

    size = max(len(group["answers"]) for group in groups)
    figure, axes = pyplot.subplots(
        len(groups), 3, figsize=(8.2, (1.1 + 0.29 * size) * len(groups)), layout="constrained", squeeze=False,
        gridspec_kw={"width_ratios": [3.7, 2.5, 1.8]},
    )  # fmt: skip
    for row, group in zip(axes, map(sorted_by_reward, groups), strict=True):
        draw_completions(row[0], group)
        draw_pairs(row[1], group, masking)
        draw_advantages(row[2], group, scale)
    out.parent.mkdir(parents=True, exist_ok=True)
    paths = [out.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=200, metadata=metadata)
    pyplot.close()
    return paths


def draw_completions(axis: Any, group: Group) -> None:
    """One completion a line, with its number and its reward."""
    size = len(group["answers"])
    axis.set(xlim=(0, 1), ylim=(size - 0.5, -0.5))
    axis.axis("off")
    question = "\n".join(textwrap.wrap(f"{group['problem']}  Right: {group['answer']}", 66))
    axis.set_title(question, loc="left", fontsize=7, fontweight="bold", parse_math=False, pad=12)
    for x, heading in ((0.0, "no."), (0.06, "reward"), (0.17, "completion")):
        axis.text(x, -0.55, heading, va="bottom", ha="left", fontsize=6, style="italic")
    for n, answer in enumerate(group["answers"]):
        kind = "anchor" if answer["anchor"] else f"{answer['reward']:g}"
        axis.text(0.0, n, f"{n + 1}", va="center", ha="left", fontweight="bold")
        axis.text(0.06, n, kind, va="center", ha="left")
        axis.text(0.17, n, shortened(answer["text"]), va="center", ha="left", parse_math=False)


def draw_pairs(axis: Any, group: Group, masking: str) -> None:
    """The heat map of d; darker is more alike. A frame marks a masked pair, lines part right from wrong."""
    from matplotlib.patches import Rectangle

    size = len(group["answers"])
    if group["distinctiveness"] is None:
        axis.axis("off")
        axis.text(0.5, 0.5, "all rewards are equal:\nnot scored", ha="center", va="center", transform=axis.transAxes)
        return
    d = np.array(group["distinctiveness"])
    axis.imshow(d, cmap="Greys_r", vmin=0, vmax=1.1, aspect="auto")
    masked = {tuple(pair) for i, j in group["masked_pairs"] for pair in ((i, j), (j, i))}
    for (i, j), value in np.ndenumerate(d):
        if i == j:
            continue
        ink = "black" if value > 0.45 else "white"
        shown = f"{value:.2f}"
        axis.text(j, i, shown.removeprefix("0"), ha="center", va="center", color=ink, fontsize=6)
        if (i, j) in masked:
            axis.add_patch(Rectangle((j - 0.42, i - 0.42), 0.84, 0.84, fill=False, edgecolor=ink, linewidth=1.5))
    rewards = [answer["reward"] for answer in group["answers"]]
    for n in range(1, size):
        if rewards[n] != rewards[n - 1]:
            axis.axhline(n - 0.5, color="black", linewidth=1)
            axis.axvline(n - 0.5, color="black", linewidth=1)
    axis.set_xticks(range(size), [str(n + 1) for n in range(size)])
    axis.set_yticks(range(size), [str(n + 1) for n in range(size)])
    axis.tick_params(length=0)
    axis.set(xlabel="no.", ylabel="no.")
    title = (
        f"distinctiveness d of two completions: darker, more alike\na right and a wrong one framed: masked, {masking}"
    )
    axis.set_title(title, fontsize=6.5)


def draw_advantages(axis: Any, group: Group, scale: str) -> None:
    """Two bars for each completion: what GRPO gives it, and what DaGRPO does."""
    places = np.arange(len(group["answers"]))
    after = [answer["advantage"] for answer in group["answers"]]
    before = unmasked_advantages(group, scale)
    label = "GRPO (1)" if any(before) else "GRPO (1): all are 0"
    axis.barh(places - 0.2, before, 0.36, color="white", edgecolor="black", label=label)
    axis.barh(places + 0.2, after, 0.36, color="0.35", edgecolor="black", label="DaGRPO (4)")
    axis.set_ylim(len(places) - 0.5, -0.5)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(places, [str(n + 1) for n in places])
    axis.tick_params(axis="y", length=0)
    axis.set(title="advantage", ylabel="no.")
    axis.title.set_fontsize(7)
    axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08), fontsize=6)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--step", type=int, default=1, help="of the run")
    parser.add_argument("--out", type=Path, default=Path("group"), help="name of the two files, without .png and .svg")
    options = parser.parse_args(arguments)
    with one_sentence("picture.py"):
        groups = groups_of(options.run, options.step)
        config = json.loads((options.run / "config.json").read_text(encoding="utf-8"))
        for path in draw(groups, config["scale"], masking_of(config), options.out):
            print(path)


if __name__ == "__main__":
    main()
