"""The commands that recipes and ablations give in their heads: all of them are ones, and the strong recipe's run."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.packing.file import read
from training.checkpoints import load_checkpoint
from training.commands import commands
from training.evaluate import Accuracy, evaluate
from training.recipe import Recipe, check_recipe, load_recipe

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "training").glob("recipes/*.yaml")) + sorted((ROOT / "training").glob("ablations/*.yaml"))
STRONG = ROOT / "training" / "recipes" / "cifar10_resnet18_strong.yaml"
TORCHRUN = re.compile(r"^torchrun .*? -m training\.commands ")
SMALL = (
    "model.width=0.125",
    "training.epochs=1",
    "training.batch_size=20",
    "training.compile=false",
    "training.precision=32-true",
    "training.threads=1",
)


def in_head(file: Path) -> list[list[str]]:
    """What `signet` is given by each command in a file's first comment, with its shell variables put in."""
    head = file.read_text().split("\nname:")[0]
    lines = [line.removeprefix("#") for line in head.splitlines() if line.startswith("#  ")]
    text = re.sub(r"\\\n", " ", "\n".join(lines))
    variables: dict[str, str] = {}
    found = []
    for name, value, line in re.findall(r'^ +(?:([A-Z]+)=("[^"]*"|\S+)|(.*))$', text, re.MULTILINE):
        if name:
            variables[name] = " ".join(value.strip('"').split())
            continue
        command = re.sub(r"\$([A-Z]+)", lambda match: variables[match[1]], line)
        command = TORCHRUN.sub("signet ", command)
        if command.startswith("signet "):
            found.append(shlex.split(command)[1:])
    return found


def settings(command: list[str]) -> list[str]:
    return [value for option, value in pairwise(command) if option == "--set"]


def recipe_in(checkpoint: Path) -> Recipe:
    return check_recipe(load_checkpoint(checkpoint)["hyper_parameters"]["recipe"], str(checkpoint))


@pytest.mark.parametrize("file", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_each_file_gives_commands_that_are_ones(file: Path) -> None:
    given = in_head(file)
    assert any(str(file.relative_to(ROOT)) in command or file.stem == "imagefolder" for command in given)
    for command in given:
        if command[0] == "train" and command[1].endswith(".yaml"):
            assert isinstance(load_recipe(ROOT / command[1], settings(command)), Recipe)
        elif command[0] == "ablate":
            assert (ROOT / command[1]).is_file()
        else:
            assert command[0] in ("train", "pack", "serve")


def test_the_strong_recipe_runs_from_the_teacher_to_the_packed_file(
    cifar_batches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its head says, with a thin network, a small data set and one epoch a run."""
    monkeypatch.chdir(tmp_path)
    small = [part for setting in SMALL for part in ("--set", setting)]
    names = {str(STRONG.relative_to(ROOT)): str(STRONG), "FOLDER": str(cifar_batches)}
    for command in in_head(STRONG):
        arguments = [names.get(argument, argument) for argument in command]
        result = CliRunner().invoke(commands, arguments + (small if command[0] == "train" else []))
        assert result.exit_code == 0, result.output
    teacher, first = (recipe_in(tmp_path / "runs" / name / "last.ckpt") for name in ("teacher", "first"))
    assert teacher.model.real
    assert teacher.training.optimizer == "sgd"
    assert teacher.training.start_from is None
    assert teacher.training.teacher == ()
    assert first.model.binarize == "activations"
    assert first.training.start_from == Path("runs/teacher/best.ckpt")
    assert first.training.teacher == (first.training.start_from,)
    packed = tmp_path / "my-zoo" / "cifar10-resnet18-strong" / "1" / "model.safetensors"
    assert '"start_from":"runs/first/best.ckpt"' in read(packed).header.model_dump_json()
    ours, theirs = (evaluate(path, data_root=cifar_batches) for path in (packed, tmp_path / "runs/strong/best.ckpt"))
    assert isinstance(ours, Accuracy)
    assert isinstance(theirs, Accuracy)
    assert ours.top1 == pytest.approx(theirs.top1, abs=3.4)  # one of 30 pictures
