"""Which models are found, which answer, and what becomes of those that cannot be loaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.engine import loader
from app.errors import Problem, ServiceError
from app.repository import Repository, State
from app.versions import ALL, LATEST, VersionPolicies
from tests.helpers import packed, pictures
from tests.helpers.server import Server


def model(root: Path, name: str, version: str = "1", seed: int = 0) -> Path:
    path = root / name / version / "model.safetensors"
    packed.write_random(path, seed=seed)
    return path


def opened(*roots: Path, default: str | None = None) -> Repository:
    repository = Repository(roots, loader(1), default, VersionPolicies(ALL))
    repository.load_all()
    return repository


def problem_of(action: Callable[[], object]) -> Problem:
    with pytest.raises(ServiceError) as raised:
        action()
    return raised.value.problem


def test_the_highest_version_answers_by_number_not_by_letters(tmp_path: Path) -> None:
    for version in ("2", "10", "9"):
        model(tmp_path, "net", version)
    repository = opened(tmp_path)
    assert [v.version for v in repository.versions("net")] == [2, 9, 10]
    assert repository.find("net").version == 10
    assert repository.find("net", "9").version == 9


def test_folders_that_are_no_versions_are_left_alone(tmp_path: Path) -> None:
    for version in ("1", "0", "01", "v2", "-3", "2.0", "latest"):
        model(tmp_path, "net", version)
    (tmp_path / "net" / "4").mkdir()
    (tmp_path / "README.md").write_text("a file beside the models")
    (tmp_path / "empty").mkdir()
    model(tmp_path, ".hidden")
    repository = opened(tmp_path)
    assert repository.names == ["net"]
    assert [v.version for v in repository.versions("net")] == [1]


def test_the_first_root_that_has_a_name_wins(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    model(first, "net", "1")
    model(second, "net", "7")
    model(second, "other")
    repository = opened(first, second, tmp_path / "missing")
    assert repository.names == ["net", "other"]
    assert repository.find("net").version == 1


def test_links_out_of_the_root_are_refused(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    target = model(outside, "secret")
    model(inside, "net")
    (inside / "linked").symlink_to(outside / "secret")
    (inside / "net" / "2").symlink_to(target.parent)
    (inside / "net" / "3").mkdir()
    (inside / "net" / "3" / "model.safetensors").symlink_to(target)
    (inside / "net" / "4").symlink_to(inside / "net" / "1")
    repository = opened(inside)
    states = {(v.name, v.version): v.state for v in repository}
    assert states == {
        ("linked", 1): State.FAILED,
        ("net", 1): State.READY,
        ("net", 2): State.FAILED,
        ("net", 3): State.FAILED,
        ("net", 4): State.READY,
    }
    assert "out of the repository" in (repository.find("net", "2").error or "")


def test_a_failed_version_leaves_the_others_serving(tmp_path: Path) -> None:
    model(tmp_path, "net", "1")
    broken = model(tmp_path, "net", "2")
    broken.write_bytes(broken.read_bytes()[:-100])
    garbage = tmp_path / "bad" / "1" / "model.safetensors"
    garbage.parent.mkdir(parents=True)
    garbage.write_bytes(b"not a model" * 100)
    repository = opened(tmp_path)
    assert repository.find("net").version == 1
    assert repository.find("net", "2").state is State.FAILED
    reason = repository.find("net", "2").error or ""
    assert reason
    assert str(tmp_path) not in reason
    assert problem_of(repository.find("net", "2").ready_session) is Problem.MODEL_UNAVAILABLE
    assert repository.find("bad").state is State.FAILED
    assert repository.default == "net"
    assert repository.ready


def test_what_cannot_be_looked_at_leaves_the_others_serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed = model(tmp_path / "zoo", "sealed").parent
    root = tmp_path / "root"
    root.mkdir()
    model(tmp_path / "zoo", "net")
    look, lists = os.stat, os.listdir

    def stat(path: Any, *args: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(f"{sealed}/"):
            raise PermissionError(13, "Permission denied", str(path))
        return look(path, *args, **options)

    def listdir(path: Any) -> list[str]:
        if path == root:
            raise PermissionError(13, "Permission denied", str(path))
        return lists(path)

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(os, "listdir", listdir)
    repository = opened(tmp_path / "zoo", root)
    assert repository.find("sealed").state is State.FAILED
    assert repository.find("sealed").error == "Permission denied"
    assert repository.find("net").state is State.READY
    repository.load("net")


def test_no_fault_of_a_model_stops_the_others(tmp_path: Path) -> None:
    faulty = model(tmp_path, "faulty")
    model(tmp_path, "net")

    def load(path: Path) -> Any:
        if path == faulty:
            raise KeyError("v2")
        return loader(1)(path)

    repository = Repository([tmp_path], load, None, VersionPolicies(ALL))
    repository.load_all()
    assert repository.find("faulty").state is State.FAILED
    assert repository.find("net").state is State.READY


def test_a_version_has_computed_once_before_it_answers(tmp_path: Path) -> None:
    """So that the first request does not wait for pages of the file, and a model that cannot compute never answers."""
    model(tmp_path, "good")
    model(tmp_path, "odd", seed=1)
    answering: list[tuple[str, list[int]]] = []

    class Watched:
        def __init__(self, path: Path) -> None:
            self.session, self.name = loader(1)(path), path.parts[-3]

        def __getattr__(self, name: str) -> Any:
            return getattr(self.session, name)

        def run(self, pixels: NDArray[np.uint8]) -> Any:
            ready = [v.version for v in repository.versions(self.name) if v.state is State.READY]
            answering.append((self.name, ready))
            if self.name == "odd":
                raise RuntimeError("no such instruction")
            return self.session.run(pixels)

    repository = Repository((tmp_path,), Watched, None, VersionPolicies(LATEST))
    repository.load_all()
    assert answering == [("good", []), ("odd", [])]
    assert repository.versions("odd")[0].state is State.FAILED
    assert "no such instruction" in str(repository.versions("odd")[0].error)

    model(tmp_path, "good", "2", seed=2)
    answering.clear()
    repository.load("good")
    assert answering == [("good", [1])]
    assert repository.find("good").version == 2


def test_names_that_do_not_exist(tmp_path: Path) -> None:
    model(tmp_path, "net")
    repository = opened(tmp_path)
    for name in ("", "nobody", "..", "../net", "net/1", "net\0", "n" * 10_000):
        assert problem_of(lambda name=name: repository.find(name)) is Problem.UNKNOWN_MODEL
    for version in ("", "2", "01", " 1", "1 ", "one", "1" * 10_000):
        assert problem_of(lambda version=version: repository.find("net", version)) is Problem.UNKNOWN_MODEL


def test_without_any_model_nothing_is_ready(tmp_path: Path) -> None:
    repository = opened(tmp_path)
    assert not repository.ready
    assert problem_of(repository.find) is Problem.MODEL_UNAVAILABLE


def test_a_configured_default_has_to_be_there(tmp_path: Path) -> None:
    model(tmp_path, "a")
    model(tmp_path, "b")
    assert opened(tmp_path).find().name == "a"
    assert opened(tmp_path, default="b").find().name == "b"
    assert not opened(tmp_path, default="c").ready


def test_the_service_reports_a_failed_model_and_serves_the_rest(tmp_path: Path) -> None:
    model(tmp_path, "good")
    broken = model(tmp_path, "broken")
    broken.write_bytes(broken.read_bytes()[:5000])
    running = Server(tmp_path)
    try:
        assert running.classify(pictures.png()).json()["model"] == "good"
        refused = running.classify(pictures.png(), model="broken")
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert refused.json()["type"].endswith("model-unavailable")
        assert str(tmp_path) not in refused.text
        card = running.client.get("/v1/models/broken").json()
        assert card["state"] == "failed"
        assert card["versions"][0]["error"]
        assert str(tmp_path) not in json.dumps(card)
        assert card["labels"] is None
        assert running.client.get("/readyz").status_code == 200
        assert running.metric("signet_model_loaded", model="broken") == 0
        failed = [event for event in running.log_events() if event["event"] == "model failed"]
        assert [event["model"] for event in failed] == ["broken"]
    finally:
        running.close()


def test_each_task_has_its_default(tmp_path: Path) -> None:
    model(tmp_path, "b-classes")
    assert problem_of(lambda: opened(tmp_path).default_for("pose")) is Problem.UNKNOWN_MODEL
    for name in ("a-people", "c-people"):
        packed.write_dots(tmp_path / name / "1" / "model.safetensors")
    chosen = {default: opened(tmp_path, default=default) for default in (None, "b-classes", "c-people")}
    assert [r.default_for("classification") for r in chosen.values()] == ["b-classes"] * 3
    assert [r.default_for("pose") for r in chosen.values()] == ["a-people", "a-people", "c-people"]
    chosen["b-classes"].unload("b-classes")
    assert chosen["b-classes"].default_for("classification") == "b-classes"  # told to be unloaded, not replaced
    assert chosen["b-classes"].default_for("pose") == "a-people"
    empty = Repository([tmp_path / "nothing"], loader(1))
    assert problem_of(lambda: empty.default_for("pose")) is Problem.MODEL_UNAVAILABLE


def test_a_default_that_did_not_load_keeps_its_own_task_alone(tmp_path: Path) -> None:
    """Its requests are told, not answered by another model; those for the other task are answered."""
    broken = model(tmp_path, "broken")
    broken.write_bytes(broken.read_bytes()[:-100])
    model(tmp_path, "classes")
    packed.write_dots(tmp_path / "people" / "1" / "model.safetensors")
    repository = opened(tmp_path, default="broken")
    assert repository.find("broken").state is State.FAILED
    assert repository.default_for("classification") == "broken"
    assert repository.default_for("pose") == "people"


def test_a_default_of_unknown_task_is_told_where_no_other_answers(tmp_path: Path) -> None:
    model(tmp_path, "broken").write_bytes(b"no model")
    packed.write_dots(tmp_path / "people" / "1" / "model.safetensors")
    repository = opened(tmp_path, default="broken")
    assert repository.default_for("pose") == "people"
    assert repository.default_for("classification") == "broken"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        b"\xff" * 8 + b"{}",
        b"[" * 100_008,
        b'{"__metadata__": {"model": "[1]"}}',
        b'{"__metadata__": 1}',
    ],
)
def test_whatever_a_broken_file_holds_its_task_is_then_unknown(tmp_path: Path, content: bytes) -> None:
    model(tmp_path, "broken").write_bytes(len(content).to_bytes(8, "little") + content)
    version = opened(tmp_path).find("broken")
    assert (version.state, version.task) == (State.FAILED, None)


def test_a_service_without_models_is_alive_but_not_ready(tmp_path: Path) -> None:
    running = Server(tmp_path)
    try:
        assert running.client.get("/livez").status_code == 200
        reply = running.client.get("/readyz")
        assert reply.status_code == 503
        assert reply.json()["type"].endswith("not-ready")
        assert running.classify(pictures.png()).status_code == 503
        assert running.client.get("/v1/models").json() == {"models": [], "default": None}
    finally:
        running.close()


def test_a_model_may_be_deleted_while_it_serves(tmp_path: Path) -> None:
    model(tmp_path, "net")
    repository = opened(tmp_path)
    shutil.rmtree(tmp_path / "net")
    session = repository.find("net").ready_session()
    assert session.run(pictures.random_pixels(32, 32)[None])["logits"].shape == (1, 10)
