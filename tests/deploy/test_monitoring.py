"""Prometheus and Grafana as they are configured, over a real run of the service.

One Prometheus with the project's own configuration (only where it finds the service is replaced) scrapes a service that
answers, refuses and fails. Then every query of the dashboard and every alert is asked of it and has to find data.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.conftest import ROOT
from tests.helpers import packed, pictures
from tests.helpers.server import Server, free_port

DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/signet.json").read_text())
RULES = [
    rule for group in yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())["groups"] for rule in group["rules"]
]
QUERIES = [
    pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", [])
]
ADAPTER_RULES = yaml.safe_load((DEPLOY / "kubernetes/prometheus-adapter.values.yaml").read_text())["rules"]["custom"]
KUBERNETES_LABELS = {"namespace": "signet", "pod": "signet-0"}
GRAFANA_VARIABLES = {"$__rate_interval": "1m", "$instance": ".*"}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: prometheus)"
)


class Prometheus:
    """A real one, scraping twice a second."""

    def __init__(self, folder: Path, target: str) -> None:
        config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
        config["global"] |= {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
        port = free_port()
        for job in config["scrape_configs"]:
            job.pop("dns_sd_configs", None)
            address = target if job["job_name"] == "signet" else f"127.0.0.1:{port}"
            job["static_configs"] = [{"targets": [address], "labels": KUBERNETES_LABELS}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        shutil.copy(DEPLOY / "prometheus/rules.yml", folder)
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=self.log,
            stderr=self.log,
        )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)

    def query(self, expression: str) -> list[dict[str, Any]]:
        reply = self.client.post("/api/v1/query", data={"query": expression})
        assert reply.status_code == 200, reply.text
        found: list[dict[str, Any]] = reply.json()["data"]["result"]
        return found

    def wait_for(self, expression: str, within_s: float = 60, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Ask until something is found; `meanwhile` is done between, as a rate needs a series that moves."""
        end = time.monotonic() + within_s
        while True:
            meanwhile()
            try:
                if self.query(expression):
                    return
            except (httpx.TransportError, AssertionError):
                pass
            if time.monotonic() > end:
                self.log.seek(0)
                raise AssertionError(f"nothing found for {expression}:\n{self.log.read()}")
            time.sleep(0.1)

    def close(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(20)
        self.log.close()


def busy(server: Server) -> None:
    """Requests that are answered, refused for what they are, refused for their number, and too late."""
    picture = pictures.jpeg()
    server.classify(picture)
    server.classify(b"not a picture")
    with ThreadPoolExecutor(12) as clients:
        list(clients.map(lambda _: server.classify(picture, model="slow", timeout_ms=1), range(12)))
    server.client.get("/v1/models")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    zoo = tmp_path_factory.mktemp("zoo")
    packed.write_random(zoo / "random" / "1" / "model.safetensors")
    packed.write_slow(zoo / "slow" / "1" / "model.safetensors")
    server = Server(zoo, default_model="random", max_queue_images=6, threads=1)
    watching = Prometheus(tmp_path_factory.mktemp("prometheus"), f"127.0.0.1:{server.port}")
    try:
        watching.wait_for('up{job="signet"} == 1')
        wanted = [f'signet_requests_total{{status="{status}"}}' for status in ("200", "415", "429", "504")]
        wanted += ['rate(signet_requests_total{status="200"}[1m]) > 0', "rate(signet_rejected_total[1m]) > 0"]
        stages = ("decode", "preprocess", "queue", "infer", "postprocess")
        wanted += [f'rate(signet_stage_seconds_count{{stage="{stage}"}}[1m]) > 0' for stage in stages]
        wanted += [f'rate(signet_rejected_total{{reason="{reason}"}}[1m]) > 0' for reason in ("queue-full", "deadline")]
        for expression in wanted:
            watching.wait_for(expression, meanwhile=lambda: busy(server))
        yield watching
    finally:
        watching.close()
        server.close()


@needs_prometheus
@pytest.mark.parametrize("query", QUERIES)
def test_each_panel_shows_data(prometheus: Prometheus, query: str) -> None:
    for variable, value in GRAFANA_VARIABLES.items():
        query = query.replace(variable, value)
    assert "$" not in query
    found = prometheus.query(query)
    assert found, f"no data for {query}"
    assert all(series["value"][1] != "NaN" for series in found)


@needs_prometheus
def test_the_dashboards_annotations_and_variable_can_be_asked(prometheus: Prometheus) -> None:
    for annotation in DASHBOARD["annotations"]["list"]:
        prometheus.query(annotation["expr"])
    (variable,) = DASHBOARD["templating"]["list"]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
    assert all(label in series["metric"] for series in prometheus.query(metric))


@needs_prometheus
@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_each_alert_watches_something_that_is_there(prometheus: Prometheus, rule: dict[str, Any]) -> None:
    """What stands before the threshold has a value, so a silent alert means that all is well."""
    absent = re.fullmatch(r"absent\((.*)\)", rule["expr"])
    watched = absent[1] if absent else re.fullmatch(r"(?s)(.*\S)\s+[<>]\s+[\d.]+\s*", rule["expr"])[1]  # type: ignore[index]
    assert prometheus.query(watched), f"no data for {watched}"
    prometheus.query(rule["expr"])


@needs_prometheus
@pytest.mark.parametrize("rule", ADAPTER_RULES, ids=[rule["name"]["as"] for rule in ADAPTER_RULES])
def test_each_metric_of_the_autoscaler_has_one_value_a_pod(prometheus: Prometheus, rule: dict[str, Any]) -> None:
    """As the Prometheus Adapter fills in its templates."""
    assert prometheus.query(rule["seriesQuery"])
    query = rule["metricsQuery"]
    for field, value in {
        "Series": rule["seriesQuery"].partition("{")[0],
        "LabelMatchers": 'namespace="signet",pod=~"signet-0|signet-1"',
        "GroupBy": "pod",
    }.items():
        query = query.replace(f"<<.{field}>>", value)
    (found,) = prometheus.query(query)
    assert found["metric"] == {"pod": "signet-0"}
    assert float(found["value"][1]) >= 0


@needs_prometheus
def test_prometheus_evaluates_the_rules_without_errors(prometheus: Prometheus) -> None:
    groups = prometheus.client.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {rule["alert"] for rule in RULES}
    assert {rule["health"] for rule in rules} == {"ok"}


@needs_promtool
def test_configuration_and_rules_are_valid(deploy: Path) -> None:
    done = subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"],
        cwd=deploy / "prometheus",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then(deploy: Path, tmp_path: Path) -> None:
    shutil.copy(deploy / "prometheus/rules.yml", tmp_path)
    shutil.copy(Path(__file__).with_name("alerts_test.yml"), tmp_path)
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tested_to_fire() -> None:
    cases = yaml.safe_load(Path(__file__).with_name("alerts_test.yml").read_text())["tests"]
    fired = {check["alertname"] for case in cases for check in case["alert_rule_test"] if check.get("exp_alerts")}
    named = {
        label
        for case in cases
        for check in case.get("promql_expr_test", [])
        for sample in check.get("exp_samples", [])
        for label in re.findall(r'alertname="(\w+)"', sample["labels"])
    }
    assert fired | named == {rule["alert"] for rule in RULES}


def test_each_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]


def test_the_dashboard_fits_its_provisioning(deploy: Path) -> None:
    (source,) = yaml.safe_load((deploy / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((deploy / "grafana/provisioning/dashboards/dashboards.yml").read_text())["providers"]
    compose = yaml.safe_load((deploy.parent / "docker-compose.yml").read_text())["services"]
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in compose["grafana"]["volumes"]
    assert all(panel["description"] for panel in panels)
    identities = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identities)) == len(identities)


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
