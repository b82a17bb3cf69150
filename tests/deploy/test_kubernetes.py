"""The Kubernetes manifests: valid for the API, and true to the image and the service's settings."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import Settings
from tests.deploy.conftest import ROOT

FOLDER = ROOT / "deploy/kubernetes"
RESOURCES = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
VERSIONS = ("1.27", "1.34")


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return content


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    template: dict[str, Any] = load("deployment.yaml")["spec"]["template"]
    return template


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", RESOURCES)
def test_it_is_valid_for_the_api(name: str, version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    validator.validate(load(name), version, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_what_kubectl_makes_of_them_is_valid_too() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    done = subprocess.run(["kubectl", "kustomize", FOLDER], capture_output=True, text=True, check=True)
    made = list(yaml.safe_load_all(done.stdout))
    assert len(made) == len(RESOURCES)
    for content in made:
        validator.validate(content, VERSIONS[-1], strict=True)
        assert content["kind"] == "Namespace" or content["metadata"]["namespace"] == "signet"


def test_the_kustomization_names_every_manifest() -> None:
    others = {"kustomization.yaml", "prometheus-adapter.values.yaml"}
    assert {path.name for path in FOLDER.glob("*.yaml")} - others == set(RESOURCES)


def test_every_selector_finds_the_pods(pod: dict[str, Any]) -> None:
    labels = pod["metadata"]["labels"].items()
    selectors = (
        load("deployment.yaml")["spec"]["selector"]["matchLabels"],
        load("service.yaml")["spec"]["selector"],
        load("pdb.yaml")["spec"]["selector"]["matchLabels"],
        load("networkpolicy.yaml")["spec"]["podSelector"]["matchLabels"],
    )
    assert all(selector.items() <= labels for selector in selectors)
    target = load("hpa.yaml")["spec"]["scaleTargetRef"]
    assert target["name"] == load("deployment.yaml")["metadata"]["name"]


def test_the_pod_may_do_nothing_that_it_need_not(pod: dict[str, Any]) -> None:
    (container,) = pod["spec"]["containers"]
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text().split(" AS serve\n")[1], re.MULTILINE)
    assert user is not None
    assert pod["spec"]["securityContext"]["runAsUser"] == int(user[1])
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["spec"]["automountServiceAccountToken"] is False


def test_probes_ask_paths_that_exist(pod: dict[str, Any]) -> None:
    from app.api.routes.operations import router

    paths = {route.path for route in router.routes}  # type: ignore[attr-defined]
    (container,) = pod["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in paths
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez", "a pod that drains is not a dead one"


def test_settings_exist_and_the_drain_fits_the_grace_period(
    pod: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (container,) = pod["spec"]["containers"]
    for variable in container["env"]:
        name = variable["name"].removeprefix("SIGNET_").lower()
        assert name in Settings.model_fields
        if "valueFrom" in variable:
            assert name.endswith("_keys")
            assert variable["valueFrom"]["secretKeyRef"]["optional"] is True
        else:
            monkeypatch.setenv(variable["name"], variable["value"])
    settings = Settings()
    assert settings.drain_delay_s < settings.drain_timeout_s
    assert settings.drain_timeout_s + 5 <= pod["spec"]["terminationGracePeriodSeconds"]
    assert pod["spec"]["enableServiceLinks"] is False


def test_the_autoscaler_asks_for_metrics_that_the_adapter_offers() -> None:
    offered = {rule["name"]["as"] for rule in load("prometheus-adapter.values.yaml")["rules"]["custom"]}
    spec = load("hpa.yaml")["spec"]
    asked = {metric["pods"]["metric"]["name"]: metric["pods"]["target"]["averageValue"] for metric in spec["metrics"]}
    assert set(asked) == offered
    assert int(asked["signet_queue_images"]) < Settings().max_queue_images / 2, "it scales long before it refuses"
    assert spec["minReplicas"] >= 2


def test_no_file_names_a_registry() -> None:
    image = load("deployment.yaml")["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image in {entry["name"] for entry in load("kustomization.yaml")["images"]}
    assert Path(image).name == image
