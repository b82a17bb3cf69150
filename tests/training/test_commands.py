"""The commands, as a user runs them: in a shell, with signals, with mistakes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from models.packing.file import read
from training.commands import commands
from training.reporting import EPOCHS_FILE, clock, read_epochs, write_epochs

ROOT = Path(__file__).parents[2]
FORBIDDEN = ("torch", "lightning", "tensorly", "yaml")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(commands, [str(argument) for argument in arguments])


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from training.commands import commands; "
        f"print([name for name in {FORBIDDEN!r} if name in sys.modules])"
    )
    assert python(code).stdout.strip() == "[]"


def test_training_needs_no_compiled_extension() -> None:
    """The engine is C++; machines that train may have none. `models.xnor` is hidden from the import system here."""
    code = (
        "import sys; sys.modules['models.xnor'] = None\n"
        "import pkgutil, importlib, training\n"
        "for found in pkgutil.walk_packages(training.__path__, 'training.'): importlib.import_module(found.name)\n"
        "print('imported')"
    )
    result = python(code)
    assert result.stdout.strip() == "imported", result.stderr


@pytest.mark.parametrize("command", ["train", "ablate", "evaluate", "pack"])
def test_help_teaches_by_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: signet {command} " in result.output


def test_train_evaluate_pack(cifar_batches: Path, recipe_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    result = run("train", recipe_file, "--data", cifar_batches, "--set", "training.epochs=1", "-o", output)
    assert result.exit_code == 0, result.output
    assert f"done: {output / 'best.ckpt'}, top-1 " in result.stdout
    assert len(read_epochs(output / EPOCHS_FILE)) == 1
    assert any((output / "tensorboard").glob("events.*"))
    result = run("evaluate", output / "best.ckpt", "--data", cifar_batches, "--limit", 10)
    assert result.exit_code == 0, result.output
    assert "top-1 " in result.stdout
    assert "n = 10" in result.stdout
    for version in (1, 2):
        result = run("pack", output / "best.ckpt", "-o", tmp_path / "zoo")
        assert result.exit_code == 0, result.output
        packed = tmp_path / "zoo" / "tiny" / str(version) / "model.safetensors"
        assert result.stdout.startswith(f"{packed}: ")
        assert read(packed).header.provenance["seed"] == 3
    for options, target in (
        ((), output / "model.safetensors"),
        (("-o", tmp_path / "x.safetensors"), tmp_path / "x.safetensors"),
        (("-o", tmp_path / "zoo", "--name", "n", "--version", 7), tmp_path / "zoo" / "n" / "7" / "model.safetensors"),
    ):
        assert run("pack", output / "best.ckpt", *options).exit_code == 0
        assert read(target).header.labels == list(read(packed).header.labels or [])
    rounded = tmp_path / "rounded.safetensors"
    result = run("pack", output / "best.ckpt", "-o", rounded, "--stem", "auto", "--data", cifar_batches)
    assert result.exit_code == 0, result.output
    share = float(result.stdout.removeprefix("stem: ").partition(" %")[0])
    assert ("so it stays rounded" in result.stdout) == (share >= 99.5)
    assert any(op.op == "pixel_conv2d" for op in read(rounded).header.graph.ops) == (share >= 99.5)
    assert run("pack", output / "best.ckpt", "-o", rounded, "--stem", "int8").exit_code == 0
    assert any(op.op == "pixel_conv2d" for op in read(rounded).header.graph.ops)


def test_mistakes_are_one_line_on_stderr_and_status_2(
    cifar_batches: Path, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SIGNET_DATA", raising=False)
    ckpt, ablation = tmp_path / "none.ckpt", tmp_path / "ablation.yaml"
    ablation.write_text(f"{{name: a, recipe: {recipe_file}, seeds: [0], grids: {{g: {{seed: [0]}}}}}}")
    cases = {
        ("train", tmp_path / "none.yaml"): "none.yaml: cannot be read",
        ("train", recipe_file): "data.root: nothing says where cifar10 lies",
        ("train", recipe_file, "--set", "training.epoch=2"): "did you mean epochs?",
        ("train", recipe_file, "--data", tmp_path / "nowhere"): "--data: ",
        ("train", recipe_file, "--data", cifar_batches, "--resume", ckpt): "none.ckpt: no such checkpoint",
        ("train", recipe_file, "--data", cifar_batches, "-o", recipe_file): "--output: ",
        ("ablate", ablation, "--data", cifar_batches, "-o", recipe_file): "tiny.yaml: cannot be made a folder: ",
        ("evaluate", ckpt): "none.ckpt: no such checkpoint",
        ("evaluate", ckpt, "--set", "data.name=cifar10"): "--set: overrides fields of --recipe",
        ("pack", ckpt): "none.ckpt: ",
        ("pack", ckpt, "-o", tmp_path): "none.ckpt: no such checkpoint",
        ("pack", ckpt, "-o", tmp_path / "a.safetensors", "--name", "n"): "--name, --version: belong to",
    }
    for arguments, message in cases.items():
        result = run(
            *arguments, *(("-o", tmp_path / "run") if arguments[0] == "train" and "-o" not in arguments else ())
        )
        assert result.exit_code == 2, arguments
        assert len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith("signet: ")
        assert message in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on_later(
    number: signal.Signals, cifar_batches: Path, recipe_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    command = [sys.executable, "-m", "training.commands", "train", str(recipe_file), "-o", str(output)]
    command += ["--set", "training.epochs=2000"]
    environment = {**os.environ, "SIGNET_DATA": str(cifar_batches)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 240
        while not (output / EPOCHS_FILE).exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, stdout + stderr
    assert f"stopped; saved {output / 'last.ckpt'}. To go on, repeat the command with --resume auto" in stderr
    assert "Traceback" not in stdout + stderr
    epoch = torch.load(output / "last.ckpt", weights_only=True)["epoch"]
    rows = len(read_epochs(output / EPOCHS_FILE))
    result = run(
        "train",
        recipe_file,
        "--data",
        cifar_batches,
        "-o",
        output,
        "--resume",
        "auto",
        "--set",
        f"training.epochs={epoch + 2}",
    )
    assert result.exit_code == 0, result.output
    assert len(read_epochs(output / EPOCHS_FILE)) == epoch + 2 >= rows


def test_a_signal_during_validation_saves_after_it(cifar_batches: Path, recipe_file: Path, tmp_path: Path) -> None:
    """Lightning has a SIGTERM handler of its own, which would end the validation, and the run with status 0."""
    output = tmp_path / "run"
    arguments = ["train", str(recipe_file), "-o", str(output), "--set", "training.validation_batch_size=5"]
    script = f"""
import os, signal, sys
from training.checkpoints import Checkpoints
from training.commands import main
Checkpoints.on_validation_start = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
sys.argv = ["signet", *{arguments!r}]
main()
"""
    environment = {**os.environ, "SIGNET_DATA": str(cifar_batches)}
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert found.returncode == 128 + signal.SIGTERM, found.stdout + found.stderr
    assert f"stopped; saved {output / 'last.ckpt'}" in found.stderr
    assert len(read_epochs(output / EPOCHS_FILE)) == 1


def test_the_table_of_epochs_keeps_columns_that_come_later(tmp_path: Path) -> None:
    rows = [{"epoch": "1", "train_loss": "2"}, {"epoch": "2", "train_loss": "1", "val_top1": "50"}]
    write_epochs(tmp_path / EPOCHS_FILE, rows)
    assert (tmp_path / EPOCHS_FILE).read_text().splitlines()[0] == "epoch,train_loss,val_top1"
    assert read_epochs(tmp_path / EPOCHS_FILE) == rows
    assert read_epochs(tmp_path / "none.csv") == []


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0, 59.6, 61, 3600, 36_061)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "10:01:01",
    ]
