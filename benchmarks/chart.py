"""The README's chart: latency of one picture on one thread, this engine beside the others, from the benchmarks' JSON.

python benchmarks/resnet18_latency.py --json resnet18.json
python benchmarks/hourglass_latency.py --json hourglass.json
python benchmarks/chart.py resnet18.json hourglass.json -o docs/latency.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

OURS, OTHERS = "#1f6f54", "#b9c2bd"


def draw(axes: Any, result: dict[str, Any]) -> None:
    """One group of bars: medians in milliseconds, the shortest on top."""
    medians = sorted(result["median_ms"].items(), key=lambda item: -item[1])
    names, values = [name for name, _ in medians], [ms for _, ms in medians]
    bars = axes.barh(names, values, color=[OURS if name in result["signet"] else OTHERS for name in names], height=0.72)
    axes.bar_label(bars, [f"{ms:.2f} ms" if ms < 10 else f"{ms:.1f} ms" for ms in values], padding=4, fontsize=8)
    axes.set_title(result["title"], fontsize=10, loc="left")
    axes.set_xlim(0, max(values) * 1.18)
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.xaxis.set_visible(False)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="JSON")
    parser.add_argument("--output", "-o", type=Path, required=True)
    options = parser.parse_args()
    runs = [json.loads(path.read_text()) for path in options.files]
    results = [r for run in runs for r in run["results"] if (r["threads"], r["batch"]) == (1, 1)]
    figure, axes = plt.subplots(len(results), 1, figsize=(8, 2.3 * len(results)), squeeze=False)
    for one, result in zip(axes[:, 0], results, strict=True):
        draw(one, result)
    machine = runs[0]["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "onnxruntime", "openvino") if name in machine)
    figure.text(
        0.01, 0.005, f"One picture, one thread, medians. {machine['cpu']}; {versions}", fontsize=7, color="#555555"
    )
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()
