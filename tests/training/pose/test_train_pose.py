"""A pose recipe trains, resumes, is measured, previewed and packed; the packed file scores what the checkpoint does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from PIL import Image
from typer.testing import CliRunner

from models.drawing import COLOURS, side_of
from models.packing.pack import pack_checkpoint
from models.pose import COCO, LSP
from tests.helpers.training import Raw, recipe_of, with_model
from training import optimizer
from training import train as training
from training.checkpoints import Checkpoints
from training.commands import commands
from training.errors import TrainingError
from training.evaluate import evaluate
from training.pose import lspet
from training.pose.config import LspetData
from training.pose.preview import FOUND_TILE_PX, GAP_PX, TITLE_PX, found_sheet
from training.recipe import Training, check_recipe, load_recipe
from training.reporting import EPOCHS_FILE, read_epochs
from training.schedule import rate

RAW: Raw = {
    "name": "tiny_pose",
    "task": "pose",
    "seed": 3,
    "model": {"architecture": "hourglass", "width": 16, "depth": 1, "stacks": 2, "latent": {"kind": "holistic"}},
    "data": {"name": "lspet", "image_size": 64, "workers": 0},
    "training": {
        "epochs": 2,
        "batch_size": 8,
        "precision": "32-true",
        "threads": 1,
        "validation_batch_size": 5,
    },
}


def changed(**parts: Raw) -> Raw:
    return {**RAW, **{name: {**RAW[name], **fields} for name, fields in parts.items()}}


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(path, weights_only=True)["state_dict"])


@pytest.fixture(scope="module")
def run(lspet_root: Path, tmp_path_factory: pytest.TempPathFactory) -> training.Outcome:
    """A finished run of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return training.train(check_recipe(RAW, "test"), data_root=lspet_root, output=folder)


def test_a_run_leaves_its_measures(run: training.Outcome) -> None:
    assert run.best is not None
    rows = read_epochs(run.last.parent / EPOCHS_FILE)
    assert len(rows) == 2
    for name in ("val_pck", "val_pck_upright", "val_pckh", "val_pckh_upright"):
        assert 0 <= float(rows[-1][name]) <= 100
    assert float(rows[-1]["val_loss"]) > 0
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])


def test_the_checkpoint_is_plain_data_and_says_what_it_is(run: training.Outcome) -> None:
    parameters = torch.load(run.last, weights_only=True)["hyper_parameters"]
    assert parameters["keypoints"] == LSP.model_dump(mode="json")
    assert parameters["recipe"]["model"]["keypoints"] == 14
    assert parameters["recipe"]["model"]["input_size"] == 64
    assert parameters["input"]["resize"]["mode"] == "letterbox"
    assert parameters["provenance"]["train_images"] == 24


def test_the_same_seed_is_the_same_run(run: training.Outcome, lspet_root: Path, tmp_path: Path) -> None:
    again = training.train(check_recipe(RAW, "test"), data_root=lspet_root, output=tmp_path / "again")
    first, second = weights(run.last), weights(again.last)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_checkpoint_and_packed_file_score_alike(run: training.Outcome, lspet_root: Path, tmp_path: Path) -> None:
    packed = pack_checkpoint(run.last, tmp_path / "m.safetensors")
    assert packed.header.task == "pose"
    assert packed.header.keypoints == LSP
    assert packed.header.labels is None
    assert packed.header.architecture == "hourglass2-w16-holistic"
    for flip in (False, True):
        torchs = evaluate(run.last, data_root=lspet_root, flip=flip)
        engines = evaluate(packed.path, data_root=lspet_root, flip=flip)
        assert torchs.people == engines.people == 8
        for name, value in torchs.values().items():
            assert engines.values()[name] == pytest.approx(value, abs=1.0)
    validated = run.metrics["val_pck"]
    assert evaluate(run.last, data_root=lspet_root).values()["pck"] == pytest.approx(validated, abs=1.0)


def test_a_run_goes_on_where_it_stood(run: training.Outcome, lspet_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    raw = changed(training={"epochs": 4})
    whole = training.train(check_recipe(raw, "test"), data_root=lspet_root, output=tmp_path / "whole")

    class StopHalfway(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 4:  # in the second epoch
                next(c for c in trainer.callbacks if isinstance(c, Checkpoints)).receive(15)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "ValidateAtEnd", StopHalfway)
        stopped = training.train(check_recipe(raw, "test"), data_root=lspet_root, output=folder)
    assert stopped.signal == 15
    resumed = training.train(check_recipe(raw, "test"), data_root=lspet_root, output=folder, resume="auto")
    first, second = weights(whole.last), weights(resumed.last)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_evaluate_is_a_command(run: training.Outcome, lspet_root: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "people.jpg"
    arguments = ["--data", str(lspet_root), "--flip", "--limit", "5", "--sheet", str(sheet)]
    result = CliRunner().invoke(commands, ["evaluate", str(run.last), *arguments])
    assert result.exit_code == 0, result.output
    with Image.open(sheet) as image:
        assert image.width > 8 * FOUND_TILE_PX
    assert sheet.stat().st_size < 300_000
    assert "PCK@0.2" in result.output
    assert "n = 5" in result.output
    assert "left_wrist" in result.output


def test_the_sheet_shows_points_where_they_were_found(lspet_root: Path) -> None:
    people = lspet.read(lspet_root, LspetData(name="lspet")).validation
    size, tile = 64, 160
    points = people.crop_joints(size)
    sheet = found_sheet(people, points, np.ones((8, 14)), size, title="", columns=4, tile_px=tile)
    for person in range(8):
        row, column = divmod(person, 4)
        for joint, name in enumerate(LSP.names):
            x, y = (points[person, joint] + 0.5) * (tile / size)
            found = sheet.getpixel(
                (int(GAP_PX + column * (tile + GAP_PX) + x), int(TITLE_PX + row * (tile + GAP_PX) + y))
            )
            assert np.abs(np.subtract(found, COLOURS[side_of(name)])).max() < 80, (person, name)


def test_two_stages_and_a_teacher_of_heatmaps(lspet_root: Path, tmp_path: Path) -> None:
    """The real twin teaches binary activations, then the binary network starts where those ended."""
    raw = {**RAW, "training": {**RAW["training"], "epochs": 1}}
    teacher = training.train(recipe_of(with_model(raw, real=True)), data_root=lspet_root, output=tmp_path / "twin").last
    from_twin = {"teacher": str(teacher), "start_from": str(teacher)}
    first = recipe_of(with_model(raw, binarize="activations"), **from_twin)
    stage = training.train(first, data_root=lspet_root, output=tmp_path / "first").last
    second = recipe_of(raw, teacher=str(teacher), start_from=str(stage), learning_rate=1e-9)
    last = training.train(second, data_root=lspet_root, output=tmp_path / "second").last
    ours, theirs = weights(last), weights(stage)
    assert not any("teacher" in name for name in ours)
    for name in ("network.heads.0.weight", "network.stem.0.weight"):
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=0)


def test_a_packed_model_teaches_heatmaps_as_its_checkpoint_does(
    run: training.Outcome, lspet_root: Path, tmp_path: Path
) -> None:
    raw = {**RAW, "training": {**RAW["training"], "epochs": 1}}
    packed = pack_checkpoint(run.last, tmp_path / "m.safetensors").path
    apart = []
    for teacher in (run.last, packed):
        recipe = recipe_of(raw, teacher=str(teacher), learning_rate=1e-9, distillation_weight=1.0)
        output = tmp_path / teacher.stem
        apart.append(training.train(recipe, data_root=lspet_root, output=output).metrics["train_loss"])
    assert apart[0] > 0
    assert apart[1] == pytest.approx(apart[0], rel=1e-3)


def test_another_skeleton_is_refused(run: training.Outcome, coco_root: Path) -> None:
    other = check_recipe(changed(data={"name": "coco", "image_size": 64}), "test")
    with pytest.raises(TrainingError, match=r"has the 14 keypoints right_ankle, .* the data set coco has the 17"):
        evaluate(run.last, data_root=coco_root, data=other.data)


def test_a_run_on_coco_measures_ap(coco_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    raw = changed(
        data={"name": "coco", "storage": "files"}, training={"batch_size": 2, "epochs": 1, "optimizer": "rmsprop"}
    )
    outcome = training.train(check_recipe(raw, "test"), data_root=coco_root, output=tmp_path / "run")
    assert 0 <= outcome.metrics["val_ap"] <= 100
    assert outcome.best is not None
    parameters = torch.load(outcome.last, weights_only=True)["hyper_parameters"]
    assert parameters["keypoints"]["names"] == COCO.names


def test_a_run_on_mpii_measures_pckh(mpii_root: Path, tmp_path: Path) -> None:
    raw = changed(data={"name": "mpii"}, training={"batch_size": 2, "epochs": 1})
    outcome = training.train(check_recipe(raw, "test"), data_root=mpii_root, output=tmp_path / "run")
    assert outcome.best is not None
    assert 0 <= outcome.metrics["val_pckh"] <= 100


@pytest.mark.parametrize("schedule", ["onecycle", "step"])
def test_rmsprop_has_no_momentum_whatever_the_schedule(schedule: str) -> None:
    settings = Training(epochs=2, optimizer="rmsprop", schedule=schedule, step_epochs=(1,), learning_rate=1e-3)
    made = optimizer.make(torch.nn.Linear(3, 2), settings)
    assert isinstance(made, torch.optim.RMSprop)
    for step in (0, 50, 99):
        now = rate(step, 100, settings)
        optimizer.set_rate(made, 1e-3, now)
        assert all(group["momentum"] == 0 for group in made.param_groups)
        assert all(group["lr"] == pytest.approx(1e-3 * now.scale) for group in made.param_groups)


MISMATCHES = {
    "a classifier's network": ({"model": {"architecture": "resnet"}}, "task: is 'pose', which needs"),
    "a classifier's data": ({"data": {"name": "cifar10"}}, "task: is 'pose', which needs"),
    "a classifier's task": ({"task": "classification"}, "task: is 'classification', which needs"),
}


@pytest.mark.parametrize("mismatch", MISMATCHES)
def test_parts_that_do_not_fit_are_refused(mismatch: str) -> None:
    changes, message = MISMATCHES[mismatch]
    with pytest.raises(TrainingError, match=message):
        check_recipe({**RAW, **changes}, "test")


def test_sizes_that_do_not_fit_the_data_are_refused(lspet_root: Path, tmp_path: Path) -> None:
    for fields, message in (
        ({"keypoints": 16}, r"model\.keypoints: is 16, but the data set lspet has 14"),
        ({"input_size": 128}, r"model\.input_size: is 128, but the data set lspet has 64"),
    ):
        with pytest.raises(TrainingError, match=message):
            training.train(check_recipe(changed(model=fields), "test"), data_root=lspet_root, output=tmp_path / "x")


def test_preview_is_a_picture_of_the_data(lspet_root: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(RAW))
    output = tmp_path / "out.png"
    arguments = ["data", "preview", str(recipe), "--data", str(lspet_root), "-o", str(output), "--people", "4"]
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == 0, result.output
    with Image.open(output) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert image.format == "PNG"
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500


def test_preview_of_what_has_no_people(raw_recipe: Raw, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(raw_recipe))
    result = CliRunner().invoke(commands, ["data", "preview", str(recipe), "-o", str(tmp_path / "out.png")])
    assert result.exit_code == 2
    assert "is 'classification', expected 'pose'" in result.output


def test_real_recipes_name_published_scale() -> None:
    folder = Path(training.__file__).parent / "recipes"
    for name, size in (("mpii", 256), ("coco", 256), ("lspet", 192)):
        recipe = load_recipe(folder / f"{name}_hourglass.yaml")
        assert recipe.task == "pose"
        assert recipe.model.width == 256
        assert recipe.data.image_size == size


def test_an_hourglass_learns_in_two_stages_from_its_twin(lspet_root: Path, tmp_path: Path) -> None:
    paths: list[str] = []
    for name, model in (("twin", {"real": True}), ("first", {"binarize": "activations"}), ("both", {})):
        options: Raw = {"epochs": 1}
        if paths:
            options |= {"start_from": paths[-1], "teacher": paths[0], "ema_decay": 0.5}
        raw = {**with_model(RAW, **model), "training": {**RAW["training"], **options}}
        outcome = training.train(check_recipe(raw, "test"), data_root=lspet_root, output=tmp_path / name)
        paths.append(str(outcome.last))
    assert 0 <= outcome.metrics["val_pck"] <= 100


def test_an_hourglass_goes_on_from_its_packed_file(run: training.Outcome, lspet_root: Path, tmp_path: Path) -> None:
    packed = pack_checkpoint(run.last, tmp_path / "m.safetensors")
    recipe = recipe_of(
        {**RAW, "training": {**RAW["training"], "epochs": 1}}, start_from=str(packed.path), learning_rate=1e-12
    )
    after = training.train(recipe, data_root=lspet_root, output=tmp_path / "after")
    again = pack_checkpoint(after.last, tmp_path / "again.safetensors")
    bits = [name for name, tensor in packed.tensors.items() if tensor.dtype == np.uint64]
    assert bits
    assert all(np.array_equal(again.tensors[name], packed.tensors[name]) for name in bits)


@pytest.mark.parametrize("field", ["mixup_alpha", "label_smoothing", "distillation_temperature"])
def test_what_needs_classes_is_not_for_people(field: str) -> None:
    with pytest.raises(TrainingError, match=rf"training\.{field}: is 0\.1, expected [01] for task 'pose'"):
        check_recipe({**RAW, "training": {**RAW["training"], field: 0.1}}, "test")


def test_latents_are_compared_on_people(lspet_root: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(changed(training={"epochs": 1})))
    ablation = {"name": "pose", "recipe": "recipe.yaml", "seeds": [0], "baseline": {"model.latent.kind": "plain"}}
    ablation["grids"] = {"latents": {"model.latent.kind": ["plain", "holistic"]}}
    (tmp_path / "ablation.yaml").write_text(yaml.safe_dump(ablation))
    arguments = ["ablate", str(tmp_path / "ablation.yaml"), "--data", str(lspet_root), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == 0, result.output
    table = (tmp_path / "out" / "table.md").read_text()
    assert "PCK@0.2, %" in table
    assert "2 of 2 runs done" in table
