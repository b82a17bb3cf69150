"""Version policies: which versions serve, that each answers as itself, and that the others take no memory."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tritonclient.utils import InferenceServerException

from app.engine import loader
from app.errors import Problem, ServiceError
from app.repository import Repository, State
from app.settings import Settings
from app.versions import ALL, LATEST, VersionPolicies, VersionPolicy, read_policies, read_policy
from models.xnor import Session
from tests.helpers import packed, pictures
from tests.helpers.server import Server, eventually

PIXELS = np.stack([pictures.random_pixels(32, 32, seed) for seed in range(3)])
ADMIN = {"X-API-Key": "root"}

NUMBERS = st.integers(1, 999_999_999)
POLICIES = st.one_of(
    st.just(ALL),
    st.integers(1, 9).map(lambda most: VersionPolicy(most=most)),
    st.sets(NUMBERS, min_size=1, max_size=5).map(
        lambda numbers: VersionPolicy(specific=tuple(sorted(numbers)), most=None)
    ),
)


@given(policy=POLICIES)
def test_a_policy_is_read_from_what_it_is_written_as(policy: VersionPolicy) -> None:
    assert read_policy(str(policy)) == policy
    assert read_policy(policy.described()) == policy
    assert read_policy(json.dumps(policy.described())) == policy


@given(found=st.sets(NUMBERS, max_size=8), most=st.integers(1, 9), pinned=st.sets(NUMBERS, min_size=1, max_size=4))
def test_what_a_policy_chooses(found: set[int], most: int, pinned: set[int]) -> None:
    assert set(ALL.chosen(found)) == found
    latest = VersionPolicy(most=most).chosen(found)
    assert len(latest) == min(most, len(found))
    assert all(kept > left for kept in latest for left in found - set(latest))
    assert set(VersionPolicy(specific=tuple(pinned), most=None).chosen(found)) == pinned


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "newest",
        "latest:0",
        "latest:-1",
        "latest:two",
        "latest:",
        "latest:1,2",
        "all:1",
        "specific",
        "specific:",
        "specific:0",
        "specific:1,",
        "specific:1.5",
        "{",
        "{}",
        '{"latest": {"num_versions": true}}',
        '{"latest": {"versions": [1]}}',
        '{"latest": 1}',
        '{"specific": {"versions": []}}',
        '{"specific": {"versions": 1}}',
        '{"all": {}, "latest": {}}',
        "[" * 100_000,
    ],
)
def test_what_is_no_policy_is_refused(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"is no version policy|is no JSON"):
        read_policy(wrong)
    if wrong:
        monkeypatch.setenv("SIGNET_VERSION_POLICY", wrong)
        with pytest.raises(ValidationError, match="version_policy"):
            Settings()


def test_settings_give_each_model_its_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().policies.of("net") == LATEST
    monkeypatch.setenv("SIGNET_VERSION_POLICY", "latest:2")
    monkeypatch.setenv("SIGNET_VERSION_POLICIES", '{"net": "all", "old": {"specific": {"versions": [3, 1]}}}')
    policies = Settings().policies
    assert policies.of("net") == ALL
    assert str(policies.of("old")) == "specific:1,3"
    assert str(policies.of("other")) == "latest:2"
    for wrong in ("all", "[]", '{"net": "newest"}', "{"):
        with pytest.raises(ValueError, match=r"expected JSON|is no JSON|net: "):
            read_policies(wrong)


class Zoo:
    """A repository of one model, `net`, whose versions have their number as seed."""

    def __init__(self, root: Path, *versions: int) -> None:
        self.root = root
        for version in versions:
            self.put(version)

    def path(self, version: int) -> Path:
        return self.root / "net" / str(version) / "model.safetensors"

    def put(self, version: int) -> None:
        packed.write_random(self.path(version), seed=version)

    def damage(self, version: int) -> None:
        """Put a version there that is cut off."""
        self.put(version)
        self.path(version).write_bytes(self.path(version).read_bytes()[:-100])

    def opened(self, policy: str) -> Repository:
        repository = Repository([self.root], loader(1), None, VersionPolicies(read_policy(policy)))
        repository.load_all()
        return repository

    def logits(self, version: int) -> np.ndarray:
        """What a version says of PIXELS, straight from the engine."""
        return Session.load(self.path(version)).run(PIXELS)["logits"]


def states(repository: Repository) -> dict[int, State]:
    return {version.version: version.state for version in repository.versions("net")}


@pytest.mark.parametrize(
    ("policy", "served"),
    [("latest", [10]), ("latest:2", [9, 10]), ("latest:9", [2, 9, 10]), ("all", [2, 9, 10]), ("specific:2,9", [2, 9])],
)
def test_a_repository_loads_what_its_policy_chooses(tmp_path: Path, policy: str, served: list[int]) -> None:
    repository = Zoo(tmp_path, 2, 9, 10).opened(policy)
    assert states(repository) == dict.fromkeys(served, State.READY)
    assert repository.find("net").version == max(served)
    repository.load("net")
    assert states(repository) == dict.fromkeys(served, State.READY)


def test_at_the_start_the_next_lower_version_stands_in_for_a_damaged_one(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path, 1, 2, 3)
    zoo.damage(4)
    for policy, expected in (
        ("latest", {4: State.FAILED, 3: State.READY}),
        ("latest:2", {4: State.FAILED, 3: State.READY, 2: State.READY}),
        ("specific:4,1", {4: State.FAILED, 1: State.READY}),
        ("specific:7,1", {7: State.FAILED, 1: State.READY}),
    ):
        repository = zoo.opened(policy)
        assert states(repository) == expected
        assert repository.find("net").version == max(n for n, state in expected.items() if state is State.READY)
        with pytest.raises(ServiceError) as raised:
            repository.load("net")
        assert raised.value.problem is Problem.BAD_MODEL
        assert states(repository) == expected
    zoo.put(4)
    repository = zoo.opened("latest")
    assert states(repository) == {4: State.READY}


def test_what_has_not_changed_is_not_loaded_again(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path, 1, 2)
    repository = zoo.opened("all")
    before = {v.version: v.session for v in repository}
    zoo.put(2)
    zoo.put(3)
    repository.load("net")
    after = {v.version: v.session for v in repository}
    assert after[1] is before[1]
    assert after[2] is not before[2]
    repository.unload("net")
    assert all(version.session is None for version in repository)
    repository.load("net")
    assert states(repository) == dict.fromkeys((1, 2, 3), State.READY)


class Live:
    """A running service over a zoo, asked by the stock client."""

    def __init__(self, zoo: Zoo, **settings: Any) -> None:
        self.zoo = zoo
        self.server = Server(zoo.root, admin_keys="root", **settings)
        self.client = triton.InferenceServerClient(f"127.0.0.1:{self.server.port}")

    def close(self) -> None:
        self.client.close()
        self.server.close()

    def load(self) -> None:
        self.client.load_model("net", headers=dict(ADMIN))

    def answer(self, version: int | None = None) -> tuple[int, np.ndarray]:
        tensor = triton.InferInput("image", list(PIXELS.shape), "UINT8").set_data_from_numpy(PIXELS)
        found = self.client.infer("net", [tensor], model_version="" if version is None else str(version))
        return int(found.get_response()["model_version"]), found.as_numpy("logits")

    def serves(self, *versions: int) -> bool:
        """Whether exactly these versions answer, each as itself, and everything that is told agrees."""
        for version in (None, *versions):
            number, logits = self.answer(version)
            assert number == (max(versions) if version is None else version)
            np.testing.assert_array_equal(logits, self.zoo.logits(number))
        told = [str(version) for version in sorted(versions)]
        assert self.client.get_model_metadata("net")["versions"] == told
        assert [
            entry["version"] for entry in self.client.get_model_repository_index() if entry["state"] == "READY"
        ] == told
        card = self.server.client.get("/v1/models/net").json()
        assert [entry["version"] for entry in card["versions"] if entry["state"] == "ready"] == told
        for version in range(1, 9):
            loaded = self.server.metric("signet_model_loaded", model="net", version=str(version))
            assert loaded == (version in versions)
            sized = self.server.metric("signet_model_bytes", model="net", version=str(version), kind="resident") > 0
            assert sized == (version in versions)
            assert self.client.is_model_ready("net", str(version)) == (version in versions)
        return True


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return Zoo(tmp_path / "zoo", 1, 2, 3)


@pytest.mark.parametrize(
    ("policy", "served"), [("latest", [3]), ("latest:2", [2, 3]), ("all", [1, 2, 3]), ("specific:1,2", [1, 2])]
)
def test_each_version_answers_as_itself(zoo: Zoo, policy: str, served: list[int]) -> None:
    live = Live(zoo, version_policy=policy)
    try:
        assert live.serves(*served)
        assert live.client.get_model_config("net")["version_policy"] == read_policy(policy).described()
        png = pictures.png(32, 32)
        for version in range(1, 5):
            for route, body in (
                ("/v1/classify", {"content": png}),
                ("/v1/classify/batch", {"files": [("image", png)]}),
            ):
                reply = live.server.client.post(route, params={"version": str(version)}, **body)
                if version in served:
                    assert (reply.status_code, reply.json()["version"]) == (200, str(version))
                else:
                    assert reply.status_code == 404
                    assert reply.json()["detail"].endswith(f"it serves {', '.join(map(str, served))}.")
        statistics = live.client.get_inference_statistics("net")["model_stats"]
        counted = {int(entry["version"]): entry["inference_count"] for entry in statistics}
        newest = max(served)
        assert counted == {version: 2 + len(PIXELS) * (1 + (version == newest)) for version in served}
        (alone,) = live.client.get_inference_statistics("net", str(served[0]))["model_stats"]
        assert alone["version"] == str(served[0])
        with pytest.raises(InferenceServerException, match="does not serve a version '8'"):
            live.answer(8)
    finally:
        live.close()


def test_a_policy_for_one_model_alone(zoo: Zoo) -> None:
    packed.write_random(zoo.root / "other" / "1" / "model.safetensors", seed=1)
    packed.write_random(zoo.root / "other" / "2" / "model.safetensors", seed=2)
    live = Live(zoo, version_policies='{"net": {"specific": {"versions": [1, 3]}}}', default_model="net")
    try:
        index = {(entry["name"], entry["version"]) for entry in live.client.get_model_repository_index()}
        assert index == {("net", "1"), ("net", "3"), ("other", "2")}
    finally:
        live.close()


def test_new_versions_come_and_old_ones_go(zoo: Zoo) -> None:
    live = Live(zoo, version_policy="latest:2")
    try:
        assert live.serves(2, 3)
        zoo.put(4)
        assert live.serves(2, 3)
        live.load()
        assert live.serves(3, 4)
        shutil.rmtree(zoo.path(4).parent)
        live.load()
        assert live.serves(2, 3)
        live.client.unload_model("net", headers=dict(ADMIN))
        index = live.client.get_model_repository_index()
        assert {(entry["version"], entry["reason"]) for entry in index} == {("2", "unloaded"), ("3", "unloaded")}
        live.load()
        assert live.serves(2, 3)
    finally:
        live.close()


@pytest.mark.parametrize(("policy", "served"), [("latest", [3]), ("all", [1, 2, 3])])
def test_a_damaged_new_version_leaves_the_old_ones_serving(zoo: Zoo, policy: str, served: list[int]) -> None:
    live = Live(zoo, version_policy=policy)
    try:
        zoo.damage(4)
        with pytest.raises(InferenceServerException, match="Version 4") as raised:
            live.load()
        assert raised.value.status() == "422"
        assert live.serves(*served)
    finally:
        live.close()
    restarted = Live(zoo, version_policy=policy)
    try:
        assert restarted.serves(*served)
        (failed,) = [e for e in restarted.client.get_model_repository_index() if e["state"] != "READY"]
        assert failed["version"] == "4"
        assert failed["reason"]
        zoo.put(4)
        restarted.load()
        assert restarted.serves(*([4] if policy == "latest" else [*served, 4]))
    finally:
        restarted.close()


def test_a_pinned_version_that_is_not_there_is_told(zoo: Zoo) -> None:
    live = Live(zoo, version_policy="specific:2,7")
    try:
        assert live.serves(2)
        with pytest.raises(InferenceServerException, match="Version 7: there is no such version"):
            live.load()
        zoo.put(7)
        live.load()
        assert live.serves(2, 7)
    finally:
        live.close()


def test_requests_go_on_while_versions_come_and_go(zoo: Zoo) -> None:
    """Whoever asks for version 1 gets it throughout; whoever asks for none gets one that served, whole."""
    live = Live(zoo, version_policy='{"latest": {"num_versions": 9}}')
    by_version = {version: zoo.logits(version) for version in (1, 2, 3)}
    for version in (4, 5):
        packed.write_random(zoo.root.parent / f"{version}.safetensors", seed=version)
        by_version[version] = Session.load(zoo.root.parent / f"{version}.safetensors").run(PIXELS)["logits"]
    failures: list[str] = []
    seen: set[int] = set()
    done = threading.Event()

    def ask(path: str) -> None:
        with httpx.Client(base_url=str(live.server.client.base_url), timeout=60) as client:
            while not done.is_set():
                headers = {"Inference-Header-Content-Length": "0"}
                reply = client.post(f"/v2/models/net{path}/infer", content=PIXELS.tobytes(), headers=headers)
                if reply.status_code != 200:
                    failures.append(reply.text)
                    continue
                length = int(reply.headers["inference-header-content-length"])
                version = int(json.loads(reply.content[:length])["model_version"])
                seen.add(version)
                found = np.frombuffer(reply.content[length:], np.float32).reshape(len(PIXELS), 10)
                if not np.array_equal(found, by_version[version]) or (path and version != 1):
                    failures.append(f"version {version} did not answer as itself")

    clients = [threading.Thread(target=ask, args=(path,)) for path in ("", "", "/versions/1")]
    for client in clients:
        client.start()
    try:
        for version in (4, 5, 4, 5):
            zoo.put(version)
            live.load()
            eventually(lambda version=version: version in seen)
            shutil.rmtree(zoo.path(version).parent)
            live.load()
            assert live.answer()[0] == 3
    finally:
        done.set()
        for client in clients:
            client.join()
        live.close()
    assert not failures
    assert {3, 4, 5} <= seen


def test_a_version_that_serves_no_more_takes_no_memory(tmp_path: Path) -> None:
    """Each version has a few megabytes of weights; after many, memory is what it was after few."""
    zoo = Zoo(tmp_path)

    def put(version: int) -> None:
        packed.write_slow(zoo.path(version), layers=40, side_px=8)

    put(1)
    live = Live(zoo)

    def mapped() -> set[str]:
        maps = psutil.Process(live.server.process.pid).memory_maps()
        return {Path(entry.path).parent.name for entry in maps if entry.path.endswith(".safetensors")}

    try:
        for version in range(2, 6):
            put(version)
            live.load()
        size = live.server.metric("signet_model_bytes", model="net", kind="resident")
        assert size > 2 << 20
        memory = live.server.rss_bytes
        for version in range(6, 26):
            put(version)
            live.load()
            assert mapped() <= {str(version)}
        assert live.server.rss_bytes - memory < 2 * size
        assert live.server.metric("signet_model_bytes", model="net", kind="resident") == size
    finally:
        live.close()


@pytest.fixture
def fleet(zoo: Zoo) -> Iterator[Live]:
    live = Live(zoo, workers=2, version_policy="latest:2")
    eventually(lambda: live.server.metric("signet_workers") == 2)
    yield live
    live.close()


def test_a_replaced_worker_serves_what_the_others_serve(fleet: Live) -> None:
    """Not what lies in the repository by then: that takes a load, which holds for all."""

    def numbers() -> set[int]:
        def ask(_: int) -> int:
            url = f"http://127.0.0.1:{fleet.server.port}/v1/classify"
            return int(httpx.post(url, content=pictures.png(32, 32), timeout=60).json()["version"])

        with ThreadPoolExecutor(8) as clients:
            return set(clients.map(ask, range(24)))

    def replace_all() -> None:
        for victim in psutil.Process(fleet.server.process.pid).children():
            victim.kill()
            victim.wait(30)
            eventually(all_serve)

    def all_serve() -> bool:
        try:
            with httpx.Client(base_url=str(fleet.server.client.base_url), timeout=60) as fresh:
                return "signet_workers 2.0" in fresh.get("/metrics").text
        except httpx.TransportError:
            return False

    def versions() -> list[str]:
        with httpx.Client(base_url=str(fleet.server.client.base_url), timeout=60) as fresh:
            told: list[str] = fresh.get("/v2/models/net").json()["versions"]
            return told

    fleet.zoo.put(4)
    replace_all()
    assert numbers() == {3}
    assert versions() == ["2", "3"]
    with httpx.Client(base_url=str(fleet.server.client.base_url), timeout=60) as fresh:
        assert fresh.post("/v2/repository/models/net/load", headers=ADMIN).status_code == 200
    assert numbers() == {4}
    replace_all()
    assert numbers() == {4}
    assert versions() == ["3", "4"]
