"""Training the runs of an ablation that have no result yet.

Any number of workers, on one machine or on several that share the folder, take runs from the same ablation: a run is
claimed by locking a file, which the system unlocks when its worker ends, however it ends.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from training.ablation.plan import Ablation, Arm, Run
from training.checkpoints import BEST, LAST, make_folder

RESULT_FILE = "result.json"
LOCK_FILE = "lock"
WAIT_S = 5.0
Tuned = dict[tuple[Any, ...], float]


@dataclass(frozen=True)
class Result:
    """What a finished run leaves in `result.json`: the figures of its last epoch, and how long it took."""

    metrics: Mapping[str, float]
    seconds: float

    @classmethod
    def read(cls, folder: Path) -> Result | None:
        """The result in a run's folder; None if the run has not finished."""
        path = folder / RESULT_FILE
        if not path.is_file():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(content["metrics"], content["seconds"])


def tuned(ablation: Ablation, output: Path) -> Tuned:
    """Of each combination of `tune.by` the best value, where its search has finished."""
    tune = ablation.config.tune
    if tune is None:
        return {}
    measure = tune.measure or ablation.metric
    sign = -1 if measure.endswith("loss") else 1
    best: Tuned = {}
    for key, tried in ablation.search().items():
        results = {value: [Result.read(output / run.folder) for run in runs] for value, runs in tried.items()}
        scores = {
            value: _score([sign * one.metrics.get(measure, math.nan) for one in found if one is not None])
            for value, found in results.items()
            if all(one is not None for one in found)
        }
        if len(scores) == len(tried):
            best[key] = max(scores, key=lambda value: scores[value])
    return best


def _score(figures: Sequence[float]) -> float:
    """The mean; a run that diverged, with NaN, is worse than all others."""
    score = mean(figures)
    return -math.inf if math.isnan(score) else score


def work(ablation: Ablation, output: Path, data_root: Path | None = None, *, keep: bool = False) -> int | None:
    """Train every run that has no result, until all have one.

    Parameters
    ----------
    output : the ablation's folder.
    data_root : where the data set lies.
    keep : keep the checkpoints of finished runs.

    Returns the number of the signal that ended it early, or None. Raises TrainingError as `training.train.train` does.
    """
    from training.train import load_data

    make_folder(output)
    dataset: Any = None
    loaded: Any = None
    while True:
        missing = [run for run in _runs(ablation, output) if Result.read(output / run.folder) is None]
        if not missing:
            return None
        for run in missing:
            with _claim(output / run.folder) as claimed:
                if not claimed or Result.read(output / run.folder) is not None:
                    continue
                if loaded != run.recipe.data:
                    dataset, loaded = load_data(run.recipe, data_root), run.recipe.data
                number = _train(run, output / run.folder, dataset, keep)
                if number is not None:
                    return number
                break
        else:
            time.sleep(WAIT_S)  # other workers have them all; their results may make more runs known


def work_in_parallel(jobs: int, command: list[str]) -> int:
    """Run `command`, a worker, `jobs` times at once; signals reach all. Returns the highest status."""
    workers = [subprocess.Popen([sys.executable, "-m", "training.commands", *command]) for _ in range(jobs)]

    def forward(number: int, _: object) -> None:
        for worker in workers:
            if worker.poll() is None:
                os.kill(worker.pid, number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return max(worker.wait() for worker in workers)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _runs(ablation: Ablation, output: Path) -> list[Run]:
    """The runs that are known by now: the search, and the final ones of what is tuned."""
    finals: list[tuple[Arm, int, Run]] = list(ablation.final_runs(tuned(ablation, output)))
    runs = [*ablation.search_runs(), *(run for _, _, run in finals)]
    return list({run.folder: run for run in runs}.values())


def _train(run: Run, folder: Path, dataset: Any, keep: bool) -> int | None:
    import torch

    from training.ablation.spectrum import SingularValues, StepStatistics
    from training.train import AUTO, provenance, train

    torch._dynamo.reset()
    print(f"{folder.name}", file=sys.stderr)
    begin = time.monotonic()
    callbacks = [SingularValues(folder), StepStatistics()]
    outcome = train(run.recipe, dataset=dataset, output=folder, resume=AUTO, callbacks=callbacks)
    if outcome.signal is not None:
        return outcome.signal
    content = {
        "recipe": run.recipe.plain(),
        "metrics": outcome.metrics,
        "seconds": time.monotonic() - begin,
        "provenance": provenance(dataset),
    }
    partial = folder / (RESULT_FILE + ".partial")
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    partial.replace(folder / RESULT_FILE)
    if not keep:
        for name in (LAST, BEST):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    return None


@contextmanager
def _claim(folder: Path) -> Iterator[bool]:
    """Whether this worker alone has the run of `folder`, for as long as the context lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
