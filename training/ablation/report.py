"""An ablation's results as tables: a CSV of all runs, one of the search, and Markdown with means and deviations."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from training.ablation.plan import Ablation, Arm, as_text, field_value
from training.ablation.spectrum import SPREAD, STEP_RANK, rank_share
from training.ablation.work import Result, Tuned, tuned
from training.checkpoints import make_folder
from training.reporting import EPOCHS_FILE, SHOWN, read_epochs
from training.signs import DEAD, FLIPPED

RESULTS_FILE, SEARCH_FILE, TABLE_FILE = "results.csv", "search.csv", "table.md"
RANK = "effective_rank"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Finished:
    """A finished run of an arm: its figures at the end, and its table of epochs."""

    seed: int
    folder: Path
    result: Result

    @property
    def figures(self) -> dict[str, Any]:
        """Its row of the CSV, but for its arm, settings and seed."""
        share = rank_share(self.folder)
        return {**_figures(self.result), RANK: "" if share is None else f"{share:.4g}"}

    @property
    def epochs(self) -> list[dict[str, str]]:
        """The rows of `epochs.csv`."""
        return read_epochs(self.folder / EPOCHS_FILE)


Finals = dict[str, list[Finished]]


def finals(ablation: Ablation, output: Path) -> Finals:
    """Of each arm, by label, its finished runs in the order of the seeds."""
    found: Finals = {arm.label: [] for arm in ablation.arms}
    for arm, seed, run in ablation.final_runs(tuned(ablation, output)):
        result = Result.read(output / run.folder)
        if result is not None:
            found[arm.label].append(Finished(seed, output / run.folder, result))
    return found


def write_report(ablation: Ablation, output: Path) -> list[Path]:
    """Write what is known so far; plots too where matplotlib is installed. Returns the files."""
    make_folder(output)
    chosen, found = tuned(ablation, output), finals(ablation, output)
    written = [output / name for name in (RESULTS_FILE, SEARCH_FILE, TABLE_FILE)]
    _write_csv(written[0], _result_rows(ablation, found, chosen))
    _write_csv(written[1], _search_rows(ablation, output, chosen))
    written[2].write_text(markdown(ablation, found, chosen), encoding="utf-8")
    try:
        from training.ablation.plots import draw
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        return written
    return written + draw(ablation, found, output)


def markdown(ablation: Ablation, found: Finals, chosen: Tuned) -> str:
    """The tables, one a grid; the deviation is that of the sample, the difference is paired by seed."""
    recipe = ablation.recipe({})
    label = SHOWN[ablation.metric][0]
    due = len(ablation.arms) * len(ablation.config.seeds)
    done = sum(len(runs) for runs in found.values())
    text = [
        f"# {ablation.config.name}",
        "",
        f"{recipe.model.name.rpartition('-')[0]} on {recipe.data.name}, {recipe.training.epochs} epochs of batches of "
        f"{recipe.training.batch_size}; {done} of {due} runs done. {label} in per cent over the validation set after "
        f"the last epoch, mean and sample standard deviation over seeds; differences are paired by seed.",
    ]
    for name, arms in ablation.grids.items():
        fields = list(ablation.config.grids[name])
        tune = [ablation.config.tune.field] if ablation.config.tune else []
        head = [_short(one) for one in (*fields, *tune)] + ["n", f"{label}, %", "against baseline", "train loss"]
        head += ["signs flipped in the last epoch, %", "weights with abs(W) >= 1, %", "effective rank of W, % of full"]
        head += ["effective rank of a step, mean over epochs, %", "spread of W in the last epoch, fresh weights' = 1"]
        rows = [_row(ablation, arm, fields, found, chosen) for arm in arms]
        text += ["", f"## {name}", "", _line(head), _line(["---"] * len(head)), *(_line(row) for row in rows)]
    return "\n".join(text) + "\n"


def _row(ablation: Ablation, arm: Arm, fields: Sequence[str], found: Finals, chosen: Tuned) -> list[str]:
    plain = ablation.recipe(arm.settings).plain()
    cells = [as_text(field_value(plain, name)) for name in fields]
    if ablation.config.tune is not None:
        cells.append(as_text(chosen.get(ablation.key(arm))))
    runs, metric = found[arm.label], ablation.metric
    cells += [str(len(runs)), _spread([run.result.metrics[metric] for run in runs])]
    baseline = ablation.baseline(arm)
    other = {run.seed: run.result.metrics[metric] for run in found[baseline.label]} if baseline else {}
    differences = [run.result.metrics[metric] - other[run.seed] for run in runs if run.seed in other]
    cells.append(_spread(differences, signed=True) if baseline else "")
    cells.append(_mean(runs, "train_loss", 3))
    shares = [share for run in runs if (share := rank_share(run.folder)) is not None]
    steps = [float(row[STEP_RANK]) for run in runs for row in run.epochs if STEP_RANK in row]
    cells += [_mean(runs, FLIPPED, 2), _mean(runs, DEAD, 2)]
    return [*cells, *(f"{mean(one):.1f}" if one else "" for one in (shares, steps)), _mean(runs, SPREAD, 1)]


def _mean(runs: Sequence[Finished], name: str, decimals: int) -> str:
    values = [run.result.metrics[name] for run in runs if name in run.result.metrics]
    return f"{mean(values):.{decimals}f}" if values else ""


def _spread(values: Sequence[float], *, signed: bool = False) -> str:
    if not values:
        return ""
    text = f"{mean(values):{'+' if signed else ''}.2f}".replace("-", MINUS)
    return f"{text} ± {_deviation(values):.2f}" if len(values) > 1 else text


def _deviation(values: Sequence[float]) -> float:
    """That of the sample; NaN where a run diverged."""
    return stdev(values) if all(map(math.isfinite, values)) else math.nan


def _result_rows(ablation: Ablation, found: Finals, chosen: Tuned) -> Iterable[dict[str, Any]]:
    tune = ablation.config.tune
    for arm in ablation.arms:
        plain = ablation.recipe(arm.settings).plain()
        settings = {name: as_text(field_value(plain, name)) for name in ablation.fields}
        if tune is not None:
            settings[tune.field] = as_text(chosen.get(ablation.key(arm)))
        for run in found[arm.label]:
            yield {"arm": arm.label, **settings, "seed": run.seed, **run.figures}


def _search_rows(ablation: Ablation, output: Path, chosen: Tuned) -> Iterable[dict[str, Any]]:
    tune = ablation.config.tune
    if tune is None:
        return
    for key, tried in ablation.search().items():
        for value, runs in tried.items():
            for seed, run in zip(tune.seeds, runs, strict=True):
                result = Result.read(output / run.folder)
                if result is None:
                    continue
                settings = {name: as_text(one) for name, one in zip(tune.by, key, strict=True)}
                mark = {"chosen": "yes" if chosen.get(key) == value else ""}
                yield {**settings, tune.field: as_text(value), "seed": seed, **mark, **_figures(result)}


def _figures(result: Result) -> dict[str, str]:
    figures = {name: f"{value:.6g}" for name, value in result.metrics.items() if not name.endswith("_step")}
    return {**figures, "run_seconds": f"{result.seconds:.0f}"}


def _write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    listed = list(rows)
    columns = list(dict.fromkeys(name for row in listed for name in row))
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns)
        writer.writeheader()
        writer.writerows(listed)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _short(name: str) -> str:
    """`model.latent.kind` as a column's head: `latent kind`."""
    return name.removeprefix("model.").removeprefix("training.").replace(".", " ").replace("_", " ")
