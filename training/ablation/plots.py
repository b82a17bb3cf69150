"""Pictures of an ablation: one a grid, with six panels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import MaxNLocator

from training.ablation.plan import Ablation, Arm
from training.ablation.report import Finals, Finished
from training.ablation.spectrum import SPECTRUM_FILE, SPREAD, STEP_RANK
from training.reporting import SHOWN
from training.signs import DEAD, FLIPPED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 90
MANY_ARMS = 10
LONG_CURVE = 30
LEAST_SHARE = 0.1


def draw(ablation: Ablation, found: Finals, output: Path) -> list[Path]:
    """Write `<grid>.png` for each grid that has a finished run. Lines are means over seeds, bands reach from the lowest
    to the highest seed."""
    written = []
    for name, arms in ablation.grids.items():
        shown = [arm for arm in arms if found[arm.label]]
        if not shown:
            continue
        figure, panels = pyplot.subplots(2, 3, figsize=(16, 7.5), layout="constrained")
        label = SHOWN[ablation.metric][0]
        curves = (
            (panels[0, 0], ablation.metric, f"validation {label}, %"),
            (panels[0, 1], FLIPPED, "signs flipped in an epoch, % of all weights"),
            (panels[1, 0], DEAD, "weights with |W| >= 1, %"),
            (panels[0, 2], STEP_RANK, "effective rank of a step of W, % of full"),
            (panels[1, 2], SPREAD, "spread of W, in terms of fresh weights'"),
        )
        for axes, metric, title in curves:
            _curves(axes, metric, shown, found)
            axes.set(title=title, xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[1, 0].set_ylim(bottom=0, top=max(panels[1, 0].get_ylim()[1], LEAST_SHARE))
        _spectra(panels[1, 1], shown, found)
        for axes in panels.flat:
            axes.grid(alpha=0.3)
        small = len(shown) > MANY_ARMS
        panels[0, 0].legend(fontsize="xx-small" if small else "small", ncols=2 if small else 1)
        figure.suptitle(f"{ablation.config.name}: {name}")
        path = output / f"{name}.png"
        figure.savefig(path, dpi=DPI)
        pyplot.close(figure)
        written.append(path)
    return written


def _curves(axes: Axes, metric: str, arms: Sequence[Arm], found: Finals) -> None:
    for number, arm in enumerate(arms):
        runs = found[arm.label]
        by_epoch: dict[int, list[float]] = {}
        for run in runs:
            for row in run.epochs:
                if metric in row:
                    by_epoch.setdefault(int(row["epoch"]), []).append(float(row[metric]))
        epochs = [epoch for epoch, values in sorted(by_epoch.items()) if len(values) == len(runs)]
        values = [by_epoch[epoch] for epoch in epochs]
        colour = f"C{number % 10}"
        marker = "o" if len(epochs) < LONG_CURVE else None
        values_of_grid = ", ".join(str(value) for value in arm.settings.values())
        name = f"{values_of_grid} (n = {len(runs)})"
        axes.plot(epochs, [mean(one) for one in values], color=colour, label=name, marker=marker, markersize=3)
        axes.fill_between(epochs, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15, lw=0)


def _spectra(axes: Axes, arms: Sequence[Arm], found: Finals) -> None:
    """Singular values of the last binary layer, in terms of the largest: after training solid, before dotted."""
    layer = ""
    for number, arm in enumerate(arms):
        spectrum = _spectrum(found[arm.label][0])
        for when, style in (("before", ":"), ("after", "-")):
            if spectrum.get(when):
                layer, values = list(spectrum[when].items())[-1]
                axes.plot([value / values[0] for value in values], style, color=f"C{number % 10}")
    axes.set(title=f"singular values of {layer}, dotted: before", xlabel="index", ylabel="of the largest")


def _spectrum(run: Finished) -> dict[str, dict[str, list[float]]]:
    path = run.folder / SPECTRUM_FILE
    content: dict[str, dict[str, list[float]]] = json.loads(path.read_text()) if path.is_file() else {}
    return content
