"""The service on a Ray cluster of two nodes, tried as it is deployed: `make ray-test`, last run in docs/ray-test.log.

Both nodes are on this machine, with processes, schedulers and proxies of their own; the second one is killed and comes
back. It takes some minutes, so it is no part of `make test`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import yaml

from app.settings import shipped_zoo
from tests.helpers import packed, pictures
from tests.helpers.server import Server, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray.cluster_utils import Cluster

ROOT = Path(__file__).parents[2]
NODE_CPUS = 2
FIRST_ADDRESS, SECOND_ADDRESS = "127.0.0.2", "127.0.0.3"
SETTINGS = {"max_queue_images": 8, "queue_deadline_ms": 60_000}
OPTIONS = {"replica_cpus": 1, "min_replicas": 2, "max_replicas": 4, "upscale_delay_s": 3, "max_queued_requests": 8}
HEALTH_CHECKS = {"health_check_period_s": 2, "health_check_timeout_s": 5}
REPORT = sys.stdout
CLEAN = {200, 429, 500, 503}
"""Answers that a client can act on: done, too many, or try again."""


def say(text: str) -> None:
    """Write a line of the report. Ray's own messages go elsewhere: `main` gives them another stdout."""
    print(text, file=REPORT, flush=True)


def step(text: str) -> None:
    say(f"\n== {text}")


def wait_for(condition: Callable[[], bool], what: str, within_s: float = 300) -> float:
    """Seconds until it held."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < within_s, f"not in {within_s:g} s: {what}"
        time.sleep(0.2)
    return time.monotonic() - begun


@dataclass
class Outcome:
    """What became of one request: its status, or the kind of its failed connection."""

    result: int | str
    begun: float
    seconds: float


@dataclass
class Load:
    """Clients that ask again and again, each over its own connection, and note every outcome.

    They pause between requests: what is tried is that nothing gets lost, not how much there can be.
    """

    port: int
    clients: int
    model: str = "cifar10-resnet18"
    outcomes: list[Outcome] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def _ask(self, number: int) -> None:
        picture = pictures.jpeg(seed=number)
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=90) as client:
            while not self._ended.is_set():
                begun = time.monotonic()
                try:
                    reply = client.post("/v1/classify", content=picture, params={"model": self.model})
                except httpx.TransportError as error:
                    self.outcomes.append(Outcome(type(error).__name__, begun, time.monotonic() - begun))
                    time.sleep(0.1)
                    continue
                self.outcomes.append(Outcome(reply.status_code, begun, time.monotonic() - begun))
                if reply.status_code == 200:
                    self.versions.append(reply.json()["version"])
                time.sleep(0.05 if reply.status_code == 200 else 0.2)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    @property
    def counts(self) -> Counter[int | str]:
        return Counter(outcome.result for outcome in self.outcomes)

    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.result != 200]


def shown(counts: Counter[int | str]) -> str:
    return ", ".join(f"{count} x {result}" for result, count in sorted(counts.items(), key=str))


class Deployment:
    """The cluster's two nodes and what is deployed on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.zoo = folder / "zoo"
        shutil.copytree(shipped_zoo() / "cifar10-resnet18", self.zoo / "cifar10-resnet18")
        packed.write_slow(self.zoo / "slow" / "1" / "model.safetensors", layers=4)
        self.port, self.second_port, self.dashboard_port = free_port(), free_port(), free_port()
        os.environ |= {
            "RAY_worker_niceness": "0",  # replicas weigh as much as the clients here
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(self.second_port),  # both proxies are on one machine
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        import ray
        from ray.cluster_utils import Cluster

        first = {"num_cpus": NODE_CPUS, "node_ip_address": FIRST_ADDRESS}
        dashboard = {"include_dashboard": True, "dashboard_port": self.dashboard_port}
        self.cluster: Cluster = Cluster(initialize_head=True, head_node_args=first | dashboard)
        self.add_node()
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR")

    def close(self) -> None:
        import ray

        ray.shutdown()
        self.cluster.shutdown()

    def add_node(self) -> None:
        self.second = self.cluster.add_node(num_cpus=NODE_CPUS, node_ip_address=SECOND_ADDRESS)

    def deploy(self, models: int, **changed: object) -> None:
        """deploy/ray/serve.yaml with this cluster's ports and limits, by the command that the file names."""
        config = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())
        config["http_options"] |= {"host": "127.0.0.1", "port": self.port}
        (application,) = config["applications"]
        application["args"] |= OPTIONS | {"settings": {**SETTINGS, **changed, "models": [str(self.zoo)]}}
        (deployment,) = application["deployments"]
        deployment |= {"user_config": {"models": models}, **HEALTH_CHECKS}
        path = self.folder / "serve.yaml"
        path.write_text(yaml.safe_dump(config))
        command = [Path(sys.executable).with_name("serve"), "deploy", path]
        address = f"http://127.0.0.1:{self.dashboard_port}"
        done = subprocess.run([*command, "--address", address], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def replicas(self) -> dict[int, str]:
        """The node of each living replica, by process."""
        from ray.util.state import list_actors

        actors = list_actors(address=self.cluster.address, filters=[("state", "=", "ALIVE")], limit=1000)
        nodes = {self.cluster.head_node.node_id: "first", self.second.node_id: "second"}
        return {a.pid: nodes[a.node_id] for a in actors if a.class_name.startswith("ServeReplica:signet")}

    @property
    def running(self) -> int:
        from ray import serve

        for application in serve.status().applications.values():
            for deployment in application.deployments.values():
                return int(deployment.replica_states.get("RUNNING", 0))
        return 0

    def images(self, samples: int = 20) -> dict[int, float]:
        """Images that each replica has answered, by process. A proxy asks one replica for /metrics, a near one."""
        born = {round(psutil.Process(pid).create_time(), 1): pid for pid in self.replicas()}
        found: dict[int, float] = dict.fromkeys(born.values(), 0.0)
        for port in [self.port, self.second_port] * samples:
            lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
            start = next(float(line.split()[1]) for line in lines if line.startswith("process_start_time_seconds "))
            pid = born[min(born, key=lambda known: abs(known - start))]
            found[pid] = sum(float(line.split()[1]) for line in lines if line.startswith("signet_images_total{"))
        return found


def answers(port: int, count: int) -> list[Any]:
    """The predictions for so many pictures, each asked with one request."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        replies = [client.post("/v1/classify?top_k=10", content=pictures.jpeg(90, 120, seed)) for seed in range(count)]
    assert {reply.status_code for reply in replies} == {200}
    assert all(len(reply.headers.get_list("x-request-id")) == 1 for reply in replies)
    return [reply.json()["predictions"] for reply in replies]


def try_both_nodes(at: Deployment) -> None:
    step("both nodes answer, and as the single process does")
    server = Server(at.zoo)
    try:
        expected = answers(server.port, 40)
    finally:
        server.close()
    assert answers(at.port, 40) == expected, "the first node's proxy"
    assert answers(at.second_port, 40) == expected, "the second node's proxy"
    say("40 pictures through each node's proxy: labels and scores equal those of the single process, digit for digit")
    nodes, images = at.replicas(), at.images()
    for pid, node in nodes.items():
        say(f"replica {pid} on the {node} node answered {images[pid]:.0f} images")
    assert sorted(nodes.values()) == ["first", "second"]
    assert all(images.values())


def try_backpressure(at: Deployment) -> None:
    step("backpressure")
    picture = pictures.jpeg()
    replies: list[httpx.Response] = []

    def ask() -> None:
        url = f"http://127.0.0.1:{at.port}/v1/classify?model=slow"
        replies.append(httpx.post(url, content=picture, timeout=90))

    threads = [threading.Thread(target=ask) for _ in range(80)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts: Counter[int | str] = Counter(reply.status_code for reply in replies)
    say(f"80 requests at once to a slow model: {shown(counts)}")
    assert set(counts) == {200, 429}
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in replies if reply.status_code == 429)
    say("each 429 says when to come back (Retry-After)")


def try_autoscaling(at: Deployment) -> None:
    step("autoscaling on the requests in progress")
    before = at.running
    with Load(at.port, 12, model="slow") as load:
        seconds = wait_for(lambda: at.running == OPTIONS["max_replicas"], "more replicas")
    say(f"12 clients: from {before} to {at.running} replicas in {seconds:.0f} s; {shown(load.counts)}")
    assert set(load.counts) <= {200, 429}


def try_new_models(at: Deployment) -> None:
    step("new models, one replica after the other")
    path = at.zoo / "cifar10-resnet18" / "2" / "model.safetensors"
    packed.write_random(path)
    with Load(at.port, 4) as load:
        time.sleep(2)
        begun = time.monotonic()
        before = set(at.replicas())
        at.deploy(models=2)

        def taken() -> bool:
            recent = load.versions[-100:]
            return len(recent) == 100 and set(recent) == {"2"}

        wait_for(taken, "100 answers in a row from version 2")
        seconds = time.monotonic() - begun
    say(f"version 2 answers everywhere {seconds:.0f} s after `serve deploy`; under load: {shown(load.counts)}")
    assert set(load.counts) == {200}
    assert before == set(at.replicas()), "a replica was restarted"
    say("no request failed, no replica was restarted")


def try_a_changed_setting(at: Deployment) -> None:
    step("a changed setting, which takes new replicas")
    before = set(at.replicas())
    with Load(at.port, 4) as load:
        begun = time.monotonic()
        at.deploy(models=2, log_level="warning")
        wait_for(lambda: at.running >= 2 and not before & set(at.replicas()), "only new replicas")
        seconds = time.monotonic() - begun
        time.sleep(2)
    say(
        f"{len(before)} replicas have made room for new ones {seconds:.0f} s after `serve deploy`; {shown(load.counts)}"
    )
    assert set(load.counts) == {200}


def try_a_hanging_replica(at: Deployment) -> None:
    step("a replica hangs, and fails its health checks")
    victim = next(pid for pid, node in at.replicas().items() if node == "second")
    with Load(at.port, 4) as load:
        time.sleep(2)
        stopped = time.monotonic()
        os.kill(victim, signal.SIGSTOP)
        wait_for(lambda: victim not in at.replicas(), "the end of the replica that hangs")
        ended_s = time.monotonic() - stopped
        wait_for(lambda: at.running >= 2, "another replica in its place")
        replaced_s = time.monotonic() - stopped
        time.sleep(5)
    failed = [outcome.begun + outcome.seconds - stopped for outcome in load.failures()]
    when = f"; failures from {min(failed):.1f} to {max(failed):.1f} s after" if failed else ""
    longest = max(outcome.seconds for outcome in load.outcomes)
    every_s, patience_s = HEALTH_CHECKS.values()
    say(f"a check every {every_s} s, which may take {patience_s} s")
    say(f"the hanging replica was ended {ended_s:.0f} s after, two replicas ran {replaced_s:.0f} s after")
    say(f"{shown(load.counts)}{when}; longest {longest:.1f} s")
    assert not psutil.pid_exists(victim) or psutil.Process(victim).status() == psutil.STATUS_ZOMBIE
    assert {outcome.result for outcome in load.outcomes} <= CLEAN
    late = [outcome for outcome in load.outcomes if outcome.begun > stopped + replaced_s]
    assert late
    assert {outcome.result for outcome in late} == {200}


def try_a_lost_node(at: Deployment) -> None:
    step("one node is killed under load")
    with Load(at.port, 6) as here, Load(at.second_port, 2) as there:
        time.sleep(3)
        killed = time.monotonic()
        at.cluster.remove_node(at.second, allow_graceful=False)
        wait_for(lambda: at.running >= 2 and set(at.replicas().values()) == {"first"}, "two replicas on the first node")
        recovered_s = time.monotonic() - killed
        time.sleep(10)
    for name, load in (("first", here), ("second, killed", there)):
        failed = [outcome.begun + outcome.seconds - killed for outcome in load.failures()]
        when = f"; failures from {min(failed):.1f} to {max(failed):.1f} s after the kill" if failed else ""
        longest = max(outcome.seconds for outcome in load.outcomes)
        say(f"through the {name} node's proxy: {shown(load.counts)}{when}; longest {longest:.1f} s")
    assert {outcome.result for outcome in here.outcomes} <= CLEAN
    late = [outcome for outcome in here.outcomes if outcome.begun > killed + 30 or outcome.begun > killed + recovered_s]
    assert late
    assert {outcome.result for outcome in late} == {200}
    lost = {result for result in there.counts if result not in CLEAN}
    assert lost, "the killed node went on answering"
    assert all(isinstance(result, str) for result in lost)
    say(f"two replicas ran on the first node {recovered_s:.0f} s after the kill; from then on every answer was 200")


def try_a_new_node(at: Deployment) -> None:
    step("the node comes back")
    begun = time.monotonic()
    at.add_node()
    with Load(at.port, 8, model="slow") as load:
        wait_for(lambda: "second" in at.replicas().values(), "a replica on the new node")
        wait_for(lambda: answers_at(at.second_port), "the new node's proxy")
    say(f"its replica and its proxy answer {time.monotonic() - begun:.0f} s after; {shown(load.counts)}")
    assert set(load.counts) <= {200, 429}


def answers_at(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def command_line(at: Deployment) -> Iterator[subprocess.Popen[str]]:
    """`signet serve --ray` on the cluster."""
    environment = os.environ | {f"SIGNET_RAY_{name.upper()}": str(value) for name, value in OPTIONS.items()}
    environment |= {"RAY_ADDRESS": at.cluster.address, "SIGNET_QUEUE_DEADLINE_MS": "60000"}
    command = [sys.executable, "-m", "app.cli", "serve", "--ray", "--port", str(at.port), "--models", str(at.zoo)]
    with (at.folder / "serve.log").open("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True, cwd=ROOT)
        try:
            yield process
        except BaseException:
            log.seek(0)
            say(log.read())
            raise
        finally:
            process.kill()
            process.wait()


def try_the_command(at: Deployment) -> None:
    step("signet serve --ray, and SIGTERM under load")
    from ray import serve

    serve.delete("signet")
    with command_line(at) as process:
        wait_for(lambda: answers_at(at.port), "ready")
        wait_for(lambda: at.running >= 2, "two replicas")
        with Load(at.port, 4, model="slow") as load:
            time.sleep(4)
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
            ended_s = time.monotonic() - begun
    say(f"exit status {status} after {ended_s:.1f} s; {shown(load.counts)} (404: the application is gone)")
    assert status == 0
    assert set(load.counts) == {200, 404}
    assert not at.replicas()


def main() -> int:
    begun = time.monotonic()
    sys.stdout = sys.stderr
    with tempfile.TemporaryDirectory() as folder:
        step("a cluster of two nodes, and deploy/ray/serve.yaml on it")
        at = Deployment(Path(folder))
        import ray

        say(time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()) + f", Ray {ray.__version__}, {os.cpu_count()} CPUs")
        say(f"each node has {NODE_CPUS} CPUs, each replica reserves {OPTIONS['replica_cpus']}")
        try:
            at.deploy(models=1)
            seconds = wait_for(lambda: at.running == 2 and answers_at(at.port) and answers_at(at.second_port), "ready")
            say(f"two replicas and two proxies are ready after {seconds:.0f} s")
            for attempt in (
                try_both_nodes,
                try_backpressure,
                try_autoscaling,
                try_new_models,
                try_a_changed_setting,
                try_a_hanging_replica,
                try_a_lost_node,
                try_a_new_node,
                try_the_command,
            ):
                attempt(at)
        except BaseException:
            say(traceback.format_exc())
            say("FAILED")
            return 1
        finally:
            at.close()
    say(f"\nPASSED in {time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
