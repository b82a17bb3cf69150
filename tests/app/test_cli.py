"""The command line, run as its users run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.helpers import pictures
from tests.helpers.server import Server


def signet(*arguments: str | Path, without: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `signet`; the module `without` is made unimportable."""
    hide = f"sys.modules[{without!r}] = None; " if without else ""
    program = f"import sys; {hide}sys.argv[0] = 'signet'; from app.cli import main; main()"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SIGNET_")}
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**clean, "COLUMNS": "120", **environment},
    )


def test_help_teaches_every_command() -> None:
    help_text = signet("--help").stdout
    for command in ("serve", "train", "evaluate", "pack", "inspect", "bench", "predict", "models"):
        assert command in help_text
    assert "curl -F image=@" in help_text


@pytest.mark.parametrize("command", ["serve", "predict", "inspect", "bench", "models"])
def test_each_command_shows_an_example(command: str) -> None:
    ended = signet(command, "--help")
    assert ended.returncode == 0
    assert f"Example: signet {command}" in ended.stdout


def test_version_is_that_of_the_package() -> None:
    ended = signet("--version")
    assert (ended.returncode, ended.stdout) == (0, f"signet {version('signet')}\n")


def test_the_command_line_starts_at_once() -> None:
    program = "import sys, app.cli; assert not {'numpy', 'fastapi', 'PIL', 'pydantic', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("command", ["train", "evaluate", "pack"])
def test_training_without_its_libraries_says_what_to_install(command: str) -> None:
    ended = signet(command, "recipe.yaml", "model.ckpt", "--some=option", without="training.commands")
    assert ended.returncode == 1
    assert "pip install 'signet[train]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_training_without_torch_says_what_to_install() -> None:
    recipe = Path(__file__).parents[2] / "training" / "recipes" / "cifar10_resnet18.yaml"
    ended = signet("train", recipe, without="torch")
    assert ended.returncode == 1
    assert "'torch'" in ended.stderr
    assert "pip install 'signet[train]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_predict_answers_as_the_service_does(server: Server, zoo: Path, tmp_path: Path) -> None:
    upright = pictures.random_pixels(60, 90)
    files = {
        "a.png": pictures.png(),
        "b.jpg": pictures.oriented(upright, 6, "JPEG"),
        "deep/c.webp": pictures.webp(200, 100),
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "notes.txt").write_text("not a picture")
    ended = signet("predict", tmp_path, "--models", zoo, "--model", "random", "--top-k", "4", "--json")
    assert ended.returncode == 0, ended.stderr
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [answer["path"] for answer in answers] == [str(tmp_path / name) for name in files]
    for answer, data in zip(answers, files.values(), strict=True):
        served = server.classify(data, top_k=4).json()
        assert answer["image"] == served["image"]
        for mine, theirs in zip(answer["predictions"], served["predictions"], strict=True):
            assert (mine["label"], mine["index"]) == (theirs["label"], theirs["index"])
            assert mine["score"] == pytest.approx(theirs["score"], abs=1e-5)


def test_predict_reports_a_bad_picture_and_goes_on(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xffnothing")
    (tmp_path / "good.png").write_bytes(pictures.png())
    missing = tmp_path / "missing.jpg"
    packed_file = zoo / "colour" / "1" / "model.safetensors"
    ended = signet("predict", tmp_path, missing, "--model", packed_file, "--top-k", "1")
    assert ended.returncode == 1
    bad, good, absent = ended.stdout.splitlines()
    assert "incomplete" in bad
    assert any(label in good for label in ("red", "green", "blue"))
    assert "No such file" in absent


def test_models_lists_the_repository(zoo: Path) -> None:
    ended = signet("models", "--models", zoo)
    assert ended.returncode == 0
    assert [line.split()[:3] for line in ended.stdout.splitlines()[1:]] == [
        ["colour", "1", "ready"],
        ["dots", "1", "ready"],
        ["random", "2", "ready"],
    ]


def test_models_says_why_one_failed(tmp_path: Path) -> None:
    path = tmp_path / "net" / "1" / "model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(100))
    ended = signet("models", "--models", tmp_path)
    assert ended.returncode == 1
    assert "failed" in ended.stdout
    assert str(path) in ended.stdout


def test_without_models_or_pictures_the_reason_is_told(zoo: Path, tmp_path: Path) -> None:
    photo, nowhere = tmp_path / "photo.png", tmp_path / "nowhere"
    photo.write_bytes(pictures.png())
    (tmp_path / "empty").mkdir()
    for ended in (signet("models", "--models", nowhere), signet("predict", photo, "--models", nowhere)):
        assert ended.returncode == 2
        told = f"signet: model repository cannot be read: {nowhere}: No such file or directory"
        assert ended.stderr.splitlines().count(told) == 1
    ended = signet("models", "--models", tmp_path / "empty")
    assert (ended.returncode, ended.stderr) == (2, f"signet: {tmp_path / 'empty'}: no models there\n")
    ended = signet("predict", tmp_path / "empty", "--models", zoo)
    assert (ended.returncode, ended.stderr) == (2, f"signet: {tmp_path / 'empty'}: no pictures there\n")
    ended = signet("predict", photo, "--models", zoo, SIGNET_ISA="bogus")
    assert ended.returncode == 2
    assert "SIGNET_ISA: 'bogus' is not one of" in ended.stderr


def test_inspect_shows_the_layers(zoo: Path) -> None:
    ended = signet("inspect", zoo / "random" / "1" / "model.safetensors")
    assert ended.returncode == 0, ended.stderr
    assert "binary_conv2d" in ended.stdout or "1-bit" in ended.stdout


def test_bench_measures_what_it_says(zoo: Path) -> None:
    path = zoo / "random" / "1" / "model.safetensors"
    ended = signet("bench", path, "--threads", "1", "--batch", "3", "--seconds", "0.05", "--json", without="torch")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert (found["threads"], found["batch"]) == (1, 3)
    assert found["calls"] >= 1
    assert found["file_bytes"] == path.stat().st_size
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p90"] <= found["latency_ms"]["p99"]
    binary = [step for step in found["steps"] if step["name"].startswith("binary_conv2d")]
    assert binary
    assert all(step["macs"] > 0 and 0 < step["share"] < 10 for step in binary)
    assert "images/s" in signet("bench", path, "--seconds", "0.01").stdout
    unknown = signet("bench", path, "--isa", "mmx")
    assert unknown.returncode != 0
    assert "mmx" in unknown.stderr


def test_inspect_of_another_file_is_a_clear_failure(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(bytes(64))
    for name in ("x.safetensors", "missing.safetensors"):
        ended = signet("inspect", tmp_path / name)
        assert ended.returncode == 2
        assert name in ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_wrong_setting_names_its_variable() -> None:
    ended = signet("serve", SIGNET_MAX_QUEUE_IMAGES="many")
    assert ended.returncode == 2
    assert "SIGNET_MAX_QUEUE_IMAGES: Input" in ended.stderr, "it is no option"
    assert "Traceback" not in ended.stderr
    assert "SIGNET_PORT or --port: " in signet("serve", SIGNET_PORT="many").stderr


def test_an_unknown_model_is_a_clear_failure(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(pictures.png())
    for model in ("nobody", tmp_path / "none.safetensors"):
        ended = signet("predict", tmp_path / "a.png", "--models", zoo, "--model", model)
        assert ended.returncode == 2
        assert "Traceback" not in ended.stderr
