"""The service on a Ray cluster, as far as it can be seen without one; `make ray-test` tries it on two nodes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from starlette.testclient import TestClient

from app.cluster_settings import ClusterSettings
from models.xnor import Session
from models.xnor.errors import EngineError
from tests.helpers import packed, pictures

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed (pip install 'signet[ray]')")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def options() -> Callable[..., Any]:
    """The options of the deployment that arguments lead to."""
    from app.cluster import application

    return lambda **given: application(given)._bound_deployment


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNET_RAY_REPLICA_CPUS", "4")
    assert ClusterSettings().replica_cpus == 4
    assert ClusterSettings(replica_cpus=3).replica_cpus == 3


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"replica_cpus": 0}, "replica_cpus"),
        ({"replica_cpus": 1.5}, "replica_cpus"),
        ({"min_replicas": 9}, "max_replicas"),
        ({"max_surge_percent": 101}, "max_surge_percent"),
        ({"replicas": 3}, "replicas"),
    ],
)
def test_wrong_settings_are_refused_by_name(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        ClusterSettings(**given)


def test_every_setting_says_what_it_is_for() -> None:
    assert all(field.description for field in ClusterSettings.model_fields.values())


def test_without_ray_the_command_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['ray'] = None; sys.argv = ['signet', 'serve', '--ray']; import app.cli as c; c.main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'signet[ray]'" in done.stderr


@needs_ray
def test_a_replica_reserves_the_cpus_that_its_kernels_use(options: Callable[..., Any]) -> None:
    deployment = options(replica_cpus=3, min_replicas=2, max_replicas=5, settings={"max_queue_images": 12})
    (settings,) = deployment.init_args
    assert deployment.ray_actor_options["num_cpus"] == 3
    assert (settings["threads"], settings["decode_threads"]) == (3, 3)
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 6)
    assert deployment.max_ongoing_requests == 12


@needs_ray
def test_too_many_requests_are_429_and_a_stop_is_as_patient_as_the_service(options: Callable[..., Any]) -> None:
    config = options(settings={"drain_timeout_s": 7})._deployment_config
    assert config.backpressure_config.status_code == 429
    assert config.backpressure_config.retry_after_s >= 1
    assert config.max_queued_requests > 0
    assert config.graceful_shutdown_timeout_s == 7


@needs_ray
def test_folders_of_models_do_not_depend_on_where_a_replica_runs(options: Callable[..., Any]) -> None:
    (settings,) = options(settings={"models": "zoo"}).init_args
    assert settings["models"] == (Path.cwd() / "zoo",)
    (settings,) = options().init_args
    assert "models" not in settings, "those that ship are found by each machine for itself"


@needs_ray
@pytest.mark.parametrize(
    ("settings", "named"),
    [({"admin_keys": "k"}, "SIGNET_ADMIN_KEYS"), ({"threads": 5}, "SIGNET_THREADS"), ({"port": -1}, "port")],
)
def test_settings_that_make_no_sense_on_a_cluster_are_refused(
    options: Callable[..., Any], settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        options(settings=settings)


@needs_ray
def test_the_file_for_a_cluster_is_what_ray_takes() -> None:
    from ray.serve.schema import ServeDeploySchema

    from app.cluster import NAME, application

    content = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())
    checked = ServeDeploySchema.model_validate(content)
    (given,) = checked.applications
    assert given.import_path == f"{application.__module__}:{application.__name__}"
    assert [deployment.name for deployment in given.deployments] == [NAME]
    assert application(given.args)._bound_deployment.name == NAME


@needs_ray
def test_a_replica_is_the_application_and_takes_models_anew(tmp_path: Path) -> None:
    from app.cluster import Replica

    packed.write_random(tmp_path / "a" / "1" / "model.safetensors", seed=1)
    packed.write_random(tmp_path / "b" / "1" / "model.safetensors", seed=1)
    replica = Replica({"models": (tmp_path,), "threads": 1})
    with pytest.raises(RuntimeError, match="no model"):
        asyncio.run(replica.check_health())
    with TestClient(replica.__serve_build_asgi_app__()) as client:
        asyncio.run(replica.check_health())

        def version(model: str) -> str:
            reply = client.post("/v1/classify", content=pictures.jpeg(), params={"model": model})
            return str(reply.json()["version"]) if reply.status_code == 200 else str(reply.status_code)

        reply = client.post("/v1/classify", content=b"no picture")
        assert reply.status_code == 415
        assert "x-request-id" not in reply.headers, "Ray's proxy adds it"
        assert reply.json()["request_id"]

        packed.write_random(tmp_path / "a" / "2" / "model.safetensors", seed=2)
        asyncio.run(replica.reconfigure({"models": 0}))
        assert version("a") == "1", "the first call comes with the start"
        asyncio.run(replica.reconfigure({"models": 1}))
        assert version("a") == "2"

        (tmp_path / "a" / "3").mkdir()
        (tmp_path / "a" / "3" / "model.safetensors").write_bytes(b"broken")
        packed.write_random(tmp_path / "c" / "1" / "model.safetensors", seed=3)
        (tmp_path / "b" / "1" / "model.safetensors").unlink()
        asyncio.run(replica.reconfigure({"models": 2}))
        assert version("a") == "2", "what cannot be loaded leaves the old one"
        assert version("b") == "503"
        assert version("c") == "1"


@needs_ray
@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (EngineError("no memory for the activations"), "no memory"),
        ({"logits": np.array([[1.0, np.nan]], np.float32)}, "not finite"),
    ],
)
def test_a_replica_whose_model_computes_no_more_is_unhealthy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outputs: Any, said: str
) -> None:
    from app.cluster import Replica

    def broken(*_: Any) -> Any:
        if isinstance(outputs, Exception):
            raise outputs
        return outputs

    packed.write_random(tmp_path / "a" / "1" / "model.safetensors")
    replica = Replica({"models": (tmp_path,), "threads": 1})
    with TestClient(replica.__serve_build_asgi_app__()) as client:
        asyncio.run(replica.check_health())
        monkeypatch.setattr(Session, "run", broken)
        assert client.get("/readyz").status_code == 200, "it was loaded"
        with pytest.raises((RuntimeError, EngineError), match=said):
            asyncio.run(replica.check_health())
