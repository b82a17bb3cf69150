"""Loading, unloading and loading anew while the service answers."""

from __future__ import annotations

import json
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from models.xnor import Session
from tests.helpers import packed, pictures
from tests.helpers.server import Server, eventually

PIXELS = np.stack([pictures.random_pixels(32, 32, seed) for seed in range(4)])
ADMIN = {"X-API-Key": "root"}


class Live:
    """A running service, its repository, and an admin at the stock client."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.put(seed=1)
        self.server = Server(root, admin_keys="root", default_model="net", version_policy="all")
        self.admin = triton.InferenceServerClient(f"127.0.0.1:{self.server.port}")

    def put(self, name: str = "net", version: str = "1", seed: int = 0) -> Path:
        """Write a model as the packer does: aside, then renamed."""
        path = self.root / name / version / "model.safetensors"
        packed.write_random(path, seed=seed)
        return path

    def load(self, name: str = "net", **more: Any) -> None:
        self.admin.load_model(name, headers=dict(ADMIN), **more)

    def refused(self, name: str = "net") -> InferenceServerException:
        with pytest.raises(InferenceServerException) as raised:
            self.load(name)
        return raised.value

    def logits(self, name: str = "net", version: str = "") -> np.ndarray:
        tensor = triton.InferInput("image", list(PIXELS.shape), "UINT8").set_data_from_numpy(PIXELS)
        return self.admin.infer(name, [tensor], model_version=version).as_numpy("logits")


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    running = Live(tmp_path / "zoo")
    yield running
    running.admin.close()
    running.server.close()


def expected(path: Path) -> np.ndarray:
    return Session.load(path).run(PIXELS)["logits"]


def test_a_changed_file_answers_after_its_load(live: Live) -> None:
    old = live.logits()
    path = live.put(seed=2)
    np.testing.assert_array_equal(live.logits(), old)
    live.load()
    np.testing.assert_array_equal(live.logits(), expected(path))
    assert not np.array_equal(live.logits(), old)


def test_new_versions_and_new_models_appear_and_lost_ones_go(live: Live) -> None:
    second, other = live.put(version="2", seed=2), live.put("other", seed=3)
    assert not live.admin.is_model_ready("other")
    live.load()
    live.load("other")
    np.testing.assert_array_equal(live.logits(), expected(second))
    np.testing.assert_array_equal(live.logits("other"), expected(other))
    assert live.admin.get_model_metadata("net")["versions"] == ["1", "2"]
    shutil.rmtree(second.parent)
    live.load()
    assert live.admin.get_model_metadata("net")["versions"] == ["1"]
    assert not live.admin.is_model_ready("net", "2")
    shutil.rmtree(live.root / "net")
    assert live.refused().status() == "404"
    assert live.admin.is_model_ready("net")


def test_an_unloaded_model_answers_503_until_it_is_loaded(live: Live) -> None:
    before = live.logits()
    live.put("other")
    live.load("other")
    live.admin.unload_model("net", headers=dict(ADMIN))
    assert not live.admin.is_model_ready("net")
    assert not live.admin.is_server_ready()
    refused = live.server.classify(pictures.png(), model="net")
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    index = {entry["name"]: entry for entry in live.admin.get_model_repository_index()}
    assert (index["net"]["state"], index["net"]["reason"]) == ("UNAVAILABLE", "unloaded")
    assert index["other"]["state"] == "READY"
    assert live.server.metric("signet_model_loaded", model="net") == 0
    assert live.server.client.get("/v1/models/net").json()["state"] == "unloaded"
    live.load()
    assert live.admin.is_server_ready()
    np.testing.assert_array_equal(live.logits(), before)


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> bytes:
    """The file with its header changed; `change` gets the whole header and the model's part of it."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    model = json.loads(header["__metadata__"]["model"])
    change(header, model)
    header["__metadata__"]["model"] = json.dumps(model)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def with_version(header: dict[str, Any], model: dict[str, Any]) -> None:
    header["__metadata__"]["format_version"] = "99"


def with_a_loop(header: dict[str, Any], model: dict[str, Any]) -> None:
    model["graph"]["ops"][0]["input"] = model["graph"]["ops"][-1]["output"]


def with_a_missing_tensor(header: dict[str, Any], model: dict[str, Any]) -> None:
    model["graph"]["ops"][0]["weight"] = "nothing"


def with_terabytes(header: dict[str, Any], model: dict[str, Any]) -> None:
    model["input"]["height"] = model["input"]["width"] = 1 << 20


def with_a_huge_tensor(header: dict[str, Any], model: dict[str, Any]) -> None:
    header["stem"]["shape"] = [1 << 20, 1 << 20, 1, 1]


BROKEN: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "truncated": (lambda path: path.read_bytes()[:-100], "data_offsets"),
    "of its first bytes": (lambda path: path.read_bytes()[:4], "header"),
    "of noise": (lambda path: b"not a model" * 1000, "header"),
    "oversized": (lambda path: path.read_bytes() + bytes(4096), "tensors"),
    "of another version": (lambda path: rewritten(path, with_version), "format_version"),
    "with a loop": (lambda path: rewritten(path, with_a_loop), "graph"),
    "with a missing tensor": (lambda path: rewritten(path, with_a_missing_tensor), "graph"),
    "of terabytes": (lambda path: rewritten(path, with_terabytes), "input"),
    "with a huge tensor": (lambda path: rewritten(path, with_a_huge_tensor), "stem"),
}


def test_what_is_broken_names_its_field_and_the_old_version_serves(live: Live) -> None:
    path, before = live.root / "net" / "1" / "model.safetensors", live.logits()
    good = path.read_bytes()
    for name, (broken, field) in BROKEN.items():
        rejected = live.server.metric("signet_rejected_total", reason="bad-model")
        aside = path.with_name("aside")
        aside.write_bytes(broken(path))
        aside.replace(path)
        refusal = live.refused()
        assert refusal.status() == "422", name
        assert field in refusal.message(), (name, refusal.message())
        assert str(live.root) not in refusal.message()
        eventually(lambda rejected=rejected: live.server.metric("signet_rejected_total", reason="bad-model") > rejected)
        np.testing.assert_array_equal(live.logits(), before)
        aside.write_bytes(good)
        aside.replace(path)
    live.load()
    np.testing.assert_array_equal(live.logits(), before)


def test_one_broken_version_changes_nothing(live: Live) -> None:
    before = live.logits()
    live.put(seed=5)
    broken = live.put(version="2", seed=6)
    broken.write_bytes(broken.read_bytes()[:-8])
    assert "Version 2" in live.refused().message()
    np.testing.assert_array_equal(live.logits(), before)
    assert live.admin.get_model_metadata("net")["versions"] == ["1"]


def test_links_out_of_the_repository_are_refused(live: Live, tmp_path: Path) -> None:
    outside, before = tmp_path / "outside" / "1" / "model.safetensors", live.logits()
    packed.write_random(outside, seed=9)
    (live.root / "linked").symlink_to(outside.parent.parent)
    (live.root / "net" / "2").symlink_to(outside.parent)
    for name in ("linked", "net"):
        refusal = live.refused(name)
        assert refusal.status() == "422"
        assert "out of the repository" in refusal.message()
        assert str(tmp_path) not in refusal.message()
    assert not live.admin.is_model_ready("linked")
    np.testing.assert_array_equal(live.logits(), before)


@pytest.mark.parametrize("name", ["nobody", "..%2fzoo%2fnet", "%00", "..", "m" * 10_000])
def test_names_that_are_no_models(live: Live, name: str) -> None:
    for action in ("load", "unload"):
        reply = live.server.client.post(f"/v2/repository/models/{name}/{action}", headers=ADMIN)
        assert reply.status_code == 404
        assert len(reply.content) < 1000


def test_configurations_and_files_in_the_request_are_refused(live: Live) -> None:
    with pytest.raises(InferenceServerException) as raised:
        live.load(config=json.dumps({"max_batch_size": 1}))
    assert raised.value.status() == "400"


def test_loading_under_load_fails_no_request_and_mixes_no_versions(live: Live) -> None:
    """Two states of a model alternate; every answer, to four pictures each, is wholly that of one of them."""
    paths = [live.root.parent / f"state{seed}" / "model.safetensors" for seed in (1, 2)]
    for seed, path in zip((1, 2), paths, strict=True):
        packed.write_random(path, seed=seed)
    states = [expected(path) for path in paths]
    failures: list[str] = []
    seen = [0, 0]
    done = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=str(live.server.client.base_url), timeout=60) as client:
            while not done.is_set():
                reply = client.post(
                    "/v2/models/net/infer", content=PIXELS.tobytes(), headers={"Inference-Header-Content-Length": "0"}
                )
                if reply.status_code != 200:
                    failures.append(reply.text)
                    continue
                length = int(reply.headers["inference-header-content-length"])
                found = np.frombuffer(reply.content[length:], np.float32).reshape(4, 10)
                matches = [np.array_equal(found, state) for state in states]
                if sum(matches) != 1:
                    failures.append("mixed")
                else:
                    seen[matches.index(True)] += 1

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        for turn in range(20):
            live.put(seed=1 + turn % 2)
            live.load()
    finally:
        done.set()
        for client in clients:
            client.join()
    assert not failures
    assert min(seen) > 0
    assert live.server.metric("signet_requests_total", status="500") == 0


def test_memory_is_flat_over_many_loads(live: Live) -> None:
    for seed in range(10):
        live.put(seed=seed)
        live.load()
    memory = live.server.rss_bytes
    for seed in range(40):
        live.put(seed=seed)
        live.load()
    assert live.server.rss_bytes - memory < 8 << 20
