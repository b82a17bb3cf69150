"""An ablation trains each run once, goes on where it stood, tunes every arm alike, and writes what it found."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from models.latent import HolisticLatent, LatentConfig
from models.networks import build
from models.resnet import ResNetConfig
from training.ablation.plan import Ablation
from training.ablation.report import markdown, write_report
from training.ablation.spectrum import StepStatistics, effective_rank, singular_values
from training.ablation.work import RESULT_FILE, Result, tuned, work
from training.commands import commands
from training.errors import TrainingError
from training.signs import SignStatistics, latent_weights
from training.train import Outcome

Raw = dict[str, Any]
ABLATIONS = Path(__file__).parents[2] / "training" / "ablations"
KIND, RATE = "model.latent.kind", "training.learning_rate"

RAW: Raw = {
    "name": "tiny",
    "recipe": "tiny.yaml",
    "set": {"training.epochs": 1},
    "seeds": [0, 1],
    "tune": {"by": [KIND], "values": [0.001, 0.004]},
    "grids": {"latents": {KIND: ["plain", "matrix"]}},
    "baseline": {KIND: "plain"},
}


@pytest.fixture
def ablation_of(recipe_file: Path) -> Callable[..., Ablation]:
    """Makes an ablation of the tiny recipe with some fields changed."""

    def make(**changes: Any) -> Ablation:
        path = recipe_file.with_name("ablation.yaml")
        path.write_text(yaml.safe_dump({**RAW, **changes}))
        return Ablation(path)

    return make


def finish(ablation: Ablation, output: Path, figure: Callable[[Any, int], float]) -> None:
    """Write results as if all known runs had been trained."""
    for _ in range(2):
        finals = [run for _, _, run in ablation.final_runs(tuned(ablation, output))]
        for run in [*ablation.search_runs(), *finals]:
            folder = output / run.folder
            folder.mkdir(parents=True, exist_ok=True)
            value = figure(run.recipe, run.recipe.seed)
            (folder / RESULT_FILE).write_text(json.dumps({"metrics": {"val_top1": value}, "seconds": 1.0}))


def test_every_arm_is_tuned_with_the_same_values_and_compared_with_its_own(
    ablation_of: Callable[..., Ablation], tmp_path: Path
) -> None:
    best = {"plain": 0.001, "matrix": 0.004}
    ablation = ablation_of()

    def figure(recipe: Any, seed: int) -> float:
        found = 50.0 + seed + (recipe.training.learning_rate == best[recipe.model.latent.kind])
        return found + (3 + 2 * seed) * (recipe.model.latent.kind == "matrix")

    searched = [(r.recipe.model.latent.kind, r.recipe.training.learning_rate) for r in ablation.search_runs()]
    assert searched == [("plain", 0.001), ("matrix", 0.001), ("plain", 0.004), ("matrix", 0.004)]
    assert tuned(ablation, tmp_path) == {}
    finish(ablation, tmp_path, figure)
    assert tuned(ablation, tmp_path) == {("plain",): 0.001, ("matrix",): 0.004}
    finals = [
        (a.label, s, r.recipe.training.learning_rate) for a, s, r in ablation.final_runs(tuned(ablation, tmp_path))
    ]
    assert finals == [("plain", 0, 0.001), ("matrix", 0, 0.004), ("plain", 1, 0.001), ("matrix", 1, 0.004)]
    result = CliRunner().invoke(commands, ["ablate", str(ablation.path), "-o", str(tmp_path), "--report"])
    assert result.exit_code == 0, result.output
    table = (tmp_path / "table.md").read_text()
    # By hand: plain 51 and 52; matrix 54 and 57, so 3 and 5 more.
    assert f"| plain | 0.001 | 2 | 51.50 ± {statistics.stdev([51, 52]):.2f} |  |" in table
    assert (
        f"| matrix | 0.004 | 2 | 55.50 ± {statistics.stdev([54, 57]):.2f} | +4.00 ± {statistics.stdev([3, 5]):.2f} |"
        in table
    )
    with (tmp_path / "search.csv").open() as handle:
        chosen = {(row[KIND], row[RATE]) for row in csv.DictReader(handle) if row["chosen"]}
    assert chosen == {("plain", "0.001"), ("matrix", "0.004")}


def test_a_loss_is_tuned_downwards(ablation_of: Callable[..., Ablation], tmp_path: Path) -> None:
    ablation = ablation_of(tune={**RAW["tune"], "measure": "val_loss"})
    for run in ablation.search_runs():
        folder = tmp_path / run.folder
        folder.mkdir()
        metrics = {"val_loss": run.recipe.training.learning_rate}
        (folder / RESULT_FILE).write_text(json.dumps({"metrics": metrics, "seconds": 1}))
    assert set(tuned(ablation, tmp_path).values()) == {0.001}


def test_a_run_that_diverged_is_not_chosen_and_stands_in_the_tables(
    ablation_of: Callable[..., Ablation], tmp_path: Path
) -> None:
    ablation = ablation_of(tune={**RAW["tune"], "values": [0.004, 0.001]})

    def figure(recipe: Any, seed: int) -> float:
        return (
            math.nan
            if recipe.training.learning_rate == 0.004 or (recipe.model.latent.kind, seed) == ("matrix", 1)
            else 5.0
        )

    finish(ablation, tmp_path, figure)
    assert tuned(ablation, tmp_path) == {("plain",): 0.001, ("matrix",): 0.001}
    write_report(ablation, tmp_path)
    assert "| matrix | 0.001 | 2 | nan ± nan | +nan ± nan |" in (tmp_path / "table.md").read_text()


def test_equal_recipes_are_one_run_whatever_grid_they_stand_in(ablation_of: Callable[..., Ablation]) -> None:
    grids = {
        "latents": {KIND: ["plain", "matrix"]},
        "ranks": {KIND: ["matrix"], "model.latent.rank": [0.5, "full"]},
    }
    ablation = ablation_of(grids=grids)
    assert [arm.label for arm in ablation.arms] == ["plain-full", "matrix-full", "matrix-0.5"]
    one, other = ablation.grids["latents"][1], ablation.grids["ranks"][1]
    assert ablation.run(one.settings, 0).folder == ablation.run(other.settings, 0).folder
    assert ablation.run(one.settings, 0).folder != ablation.run(one.settings, 1).folder
    # So is it when a grid is added later, and the search of a latent's rate, with the recipe's rank.
    assert ablation.run({KIND: "matrix"}, 0).folder == ablation_of().run({KIND: "matrix"}, 0).folder
    assert len(ablation.search_runs()) == 4


def test_where_and_how_a_run_is_computed_does_not_make_it_another(ablation_of: Callable[..., Ablation]) -> None:
    ours = ablation_of().run({}, 0).folder
    theirs = ablation_of(set={"training.epochs": 1, "training.threads": 2, "data.root": "/elsewhere"}).run({}, 0).folder
    assert ours == theirs
    assert ablation_of(set={"training.epochs": 3}).run({}, 0).folder != ours


def test_an_arm_is_compared_with_the_baseline_that_is_most_like_it(ablation_of: Callable[..., Ablation]) -> None:
    ablation = ablation_of(grids={"all": {KIND: ["plain", "matrix"], "model.scale": ["channel", "analytic"]}})
    found = {arm.label: getattr(ablation.baseline(arm), "label", None) for arm in ablation.arms}
    assert found == {
        "plain-channel": None,
        "plain-analytic": None,
        "matrix-channel": "plain-channel",
        "matrix-analytic": "plain-analytic",
    }


def test_runs_are_trained_once_and_leave_tables_and_plots(
    ablation_of: Callable[..., Ablation], cifar_batches: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    ablation = ablation_of(tune=None, seeds=[0])
    arguments = ["ablate", str(ablation.path), "--data", str(cifar_batches), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == 0, result.output
    folders = sorted(path.parent for path in (tmp_path / "out").glob(f"*/{RESULT_FILE}"))
    assert [folder.name.partition("-")[0] for folder in folders] == ["matrix", "plain"]
    times = [(folder / RESULT_FILE).stat().st_mtime_ns for folder in folders]
    for folder in folders:
        found = Result.read(folder)
        assert found is not None
        wanted = {"val_top1", "train_loss", "flipped_share", "dead_share", "step_rank", "weight_spread"}
        assert wanted <= found.metrics.keys()
        spectrum = json.loads((folder / "singular_values.json").read_text())
        assert spectrum["before"].keys() == spectrum["after"].keys()
        assert not list(folder.glob("*.ckpt"))
    rows = csv.DictReader((tmp_path / "out" / "results.csv").open())
    assert all(0 < float(row["effective_rank"]) <= 100 for row in rows)
    assert (tmp_path / "out" / "latents.png").read_bytes().startswith(b"\x89PNG")
    assert CliRunner().invoke(commands, arguments).exit_code == 0
    assert [(folder / RESULT_FILE).stat().st_mtime_ns for folder in folders] == times


@pytest.mark.parametrize("stop", [5, 7])  # before and after the half of the second epoch of four steps
def test_an_interrupted_run_goes_on_and_equals_an_uninterrupted_one(
    stop: int, ablation_of: Callable[..., Ablation], cifar_batches: Path, tmp_path: Path
) -> None:
    from lightning.pytorch import Callback

    from training import train as training
    from training.checkpoints import Checkpoints

    ablation = ablation_of(tune=None, seeds=[0], grids={"latents": {KIND: ["matrix"]}}, set={"training.epochs": 2})
    assert work(ablation, tmp_path / "whole", cifar_batches) is None

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == stop:
                next(c for c in trainer.callbacks if isinstance(c, Checkpoints)).receive(15)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "ValidateAtEnd", Stop)
        assert work(ablation, tmp_path / "parts", cifar_batches) == 15
    assert not list((tmp_path / "parts").glob(f"*/{RESULT_FILE}"))
    assert work(ablation, tmp_path / "parts", cifar_batches) is None
    (whole,) = (tmp_path / "whole").glob("*/epochs.csv")
    (parts,) = (tmp_path / "parts").glob("*/epochs.csv")
    columns = ("epoch", "val_top1", "flipped_share", "dead_share", "step_rank", "weight_spread")
    tables = [[[row[name] for name in columns] for row in csv.DictReader(path.open())] for path in (whole, parts)]
    assert tables[0] == tables[1]
    spectra = [json.loads(path.with_name("singular_values.json").read_text()) for path in (whole, parts)]
    assert spectra[0] == spectra[1]


def test_workers_side_by_side_share_the_runs(
    ablation_of: Callable[..., Ablation], cifar_batches: Path, tmp_path: Path
) -> None:
    ablation = ablation_of(tune=None, seeds=[0, 1])
    arguments = ["ablate", str(ablation.path), "--data", str(cifar_batches), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(commands, [*arguments, "--jobs", "2"])
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "out").glob(f"*/{RESULT_FILE}"))) == 4
    assert "4 of 4 runs done" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, r"ablation\.yaml: seeds: "),
        ({"grids": {"latents": {KIND: []}}}, r"grids\.latents: expected fields"),
        ({"grids": {"latents": {KIND: ["plian"]}}}, r"model\.latent\.kind: is 'plian'.*did you mean plain"),
        ({"grid": {}}, r"ablation\.yaml: grid: "),
        ({"recipe": "other.yaml"}, r"other\.yaml: cannot be read"),
        ({"set": {"training.epoch": 1}}, r"did you mean epochs"),
        (
            {"tune": {**RAW["tune"], "measure": "trainloss"}},
            r"tune\.measure: is 'trainloss', expected one of train_loss, ",
        ),
        ({"baseline": {"model.latent.kin": "plain"}}, r"ablation\.yaml: baseline: .*did you mean kind"),
    ],
)
def test_mistakes_are_named(changes: Raw, message: str, ablation_of: Callable[..., Ablation]) -> None:
    with pytest.raises(TrainingError, match=message):
        ablation_of(**changes)


@pytest.mark.parametrize("path", sorted(ABLATIONS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_ablations_of_the_tree_are_whole(path: Path) -> None:
    ablation = Ablation(path)
    assert ablation.config.tune is None or len(ablation.search_runs()) >= 4
    table = markdown(ablation, {arm.label: [] for arm in ablation.arms}, {})
    kinds = {arm.settings.get(KIND) for arms in ablation.grids.values() for arm in arms}
    if kinds == {None}:  # of options, each beside the same recipe without it
        unlike = [arm for arm in ablation.arms if ablation.baseline(arm) is not None]
        assert len(unlike) == len(ablation.arms) - 1
    else:
        assert {"plain", "holistic"} <= kinds
        assert "| plain |" in table


def network(kind: str) -> torch.nn.Module:
    return build(ResNetConfig(width=0.125, latent=LatentConfig(kind=kind)))  # type: ignore[arg-type]


class Module:
    """What the callback needs of a Lightning module."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network, self.logged = network, {}

    def log(self, name: str, value: float, **_: Any) -> None:
        self.logged[name] = value


@pytest.mark.parametrize(
    ("values", "rank"),
    [([3.0] * 7, 7), ([5.0, 0.0, 0.0], 1), ([2.0, 2.0, 0.0], 2), ([0.0], 0), ([2.0, 1.0], 1.6493848)],
)
def test_effective_rank(values: list[float], rank: float) -> None:
    assert effective_rank(values) == pytest.approx(rank)


def test_flipped_and_dead_shares_against_a_count_by_hand() -> None:
    module, callback = Module(network("plain")), SignStatistics()
    callback.on_train_start(None, module)  # type: ignore[arg-type]
    weights = dict(latent_weights(module.network))
    total = sum(weight.numel() for weight in weights.values())
    first, *_, last = weights.values()  # a plain latent's W is the parameter itself
    with torch.no_grad():
        first[0, 0] *= -1  # 9 signs, and 3 more
        last[1, 0, 0] = -torch.sign(last[1, 0, 0]) * torch.tensor([1.0, 2.0, 0.999])
    callback.on_train_epoch_end(None, module)  # type: ignore[arg-type]
    assert module.logged == pytest.approx({"flipped_share": 100 * 12 / total, "dead_share": 100 * 2 / total})
    callback.on_train_epoch_end(None, module)  # type: ignore[arg-type]
    assert module.logged["flipped_share"] == 0


def test_a_holistic_tensor_is_reconstructed_once_to_look_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    net, calls = network("holistic"), []
    original = HolisticLatent.core_tensor
    monkeypatch.setattr(HolisticLatent, "core_tensor", lambda self: calls.append(1) or original(self))
    assert len(latent_weights(net)) == 16
    assert len(calls) == len([m for m in net.modules() if isinstance(m, HolisticLatent)])


def test_looking_at_weights_leaves_gradients_on() -> None:
    net = network("plain")
    for _ in zip(latent_weights(net), latent_weights(net), strict=True):
        assert torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert not any(weight.requires_grad for _, weight in latent_weights(net))


def test_rank_of_a_step_and_spread_of_weights_by_hand() -> None:
    module, callback = Module(network("plain")), StepStatistics()
    weights = dict(latent_weights(module.network))
    trainer = SimpleNamespace(num_training_batches=5, accumulate_grad_batches=2, global_step=0)
    with torch.no_grad():
        for weight in weights.values():
            weight.copy_(torch.full_like(weight, 3 * (2 / weight[0].numel()) ** 0.5))  # of thrice the fresh spread

    def step() -> None:
        callback.on_before_optimizer_step(trainer, module, None)  # type: ignore[arg-type]
        with torch.no_grad():
            last = list(weights.values())[-1].flatten(1)
            last[:4, :4] += 0.1 * torch.eye(4)  # four directions alike
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, module, None, None, 0)  # type: ignore[arg-type]
        callback.on_train_epoch_end(trainer, module)  # type: ignore[arg-type]

    step()
    assert module.logged == {}
    step()  # the second of three, halfway through the epoch
    full = len(list(weights.values())[-1])
    assert module.logged["step_rank"] == pytest.approx(100 * 4 / full / len(weights), rel=1e-3)
    assert module.logged["weight_spread"] == pytest.approx(3, rel=1e-2)
    before = dict(module.logged)
    step()
    assert module.logged == before


def test_singular_values_against_numpy() -> None:
    import numpy as np

    net = network("matrix")
    found = singular_values(net)
    for name, weight in latent_weights(net):
        expected = np.linalg.svd(weight.double().numpy().reshape(len(weight), -1), compute_uv=False)
        np.testing.assert_allclose(found[name], expected, rtol=1e-3, atol=1e-5)


def test_weights_that_are_not_finite_have_no_singular_values() -> None:
    module, callback = Module(network("plain")), StepStatistics()
    trainer = SimpleNamespace(num_training_batches=1, accumulate_grad_batches=1, global_step=0)
    first = next(iter(dict(latent_weights(module.network)).values()))
    with torch.no_grad():
        first[0, 0, 0, 0] = torch.nan
    found = list(singular_values(module.network).values())
    assert all(map(math.isnan, found[0]))
    assert not any(map(math.isnan, found[1]))
    assert math.isnan(effective_rank(found[0]))
    callback.on_before_optimizer_step(trainer, module, None)  # type: ignore[arg-type]
    callback.on_train_batch_end(trainer, module, None, None, 0)  # type: ignore[arg-type]
    callback.on_train_epoch_end(trainer, module)  # type: ignore[arg-type]
    assert math.isnan(module.logged["step_rank"])


def test_each_run_gets_the_data_that_its_recipe_names(
    ablation_of: Callable[..., Ablation], cifar_batches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search on fewer pictures must not leave them to the runs that follow."""
    seen = []

    def train(recipe: Any, dataset: Any, **_: Any) -> Outcome:
        seen.append((recipe.data.train_images, len(dataset.train)))
        return Outcome(tmp_path / "last.ckpt", "val_top1", None, None, {"val_top1": 50.0})

    monkeypatch.setattr("training.train.train", train)
    few = {"data.train_images": 7}
    ablation = ablation_of(tune={**RAW["tune"], "set": few}, seeds=[0])
    assert work(ablation, tmp_path / "out", cifar_batches) is None
    whole = {count for wanted, count in seen if wanted is None}
    assert {count for wanted, count in seen if wanted == 7} == {7}
    assert len(whole) == 1
    assert whole != {7}
