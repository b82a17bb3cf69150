"""A client that mixes good, bad and vanishing requests, and then wants a service that has not noticed.

    python -m tests.e2e.chaos [--seconds 60] [--clients 8] [--workers 1]      (make chaos)

Good requests are answered rightly or, in the crush, refused with 429 or 504. Bad ones get the answer that
`tests.app.test_bad_inputs` says. Vanishing clients close or reset their connection anywhere between the first byte and
the answer. Afterwards a good request is answered rightly, nothing is in flight or queued, and memory is where it was.
"""

from __future__ import annotations

import argparse
import random
import socket
import struct
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from models.xnor import Session
from tests.app.test_bad_inputs import CASES, Case
from tests.e2e.crowd import Crowd
from tests.helpers import packed, pictures
from tests.helpers.requests import MULTIPART, multipart, part, request
from tests.helpers.server import Server, eventually, read_reply

CRUSH = frozenset({429, 504})
"""What a good request may get besides its answer while there are too many."""
WARMING_SHARE = 0.3
MEMORY_SLACK_BYTES = 16 << 20
PIXELS = np.stack([pictures.random_pixels(32, 32, seed) for seed in range(4)])
SETTINGS = {"max_queue_images": 16, "max_body_bytes": 4 << 20, "body_timeout_s": 2, "header_timeout_s": 2}


def write_zoo(root: Path) -> None:
    """Models of the kinds that the bad inputs speak of."""
    for version in (1, 2):
        packed.write_random(root / "random" / str(version) / "model.safetensors", seed=version)
    packed.write_colour(root / "colour" / "1" / "model.safetensors")
    packed.write_dots(root / "dots" / "1" / "model.safetensors")


def message(case: Case) -> bytes:
    headers = [*case.headers, *([("Content-Type", case.content_type)] if case.method == "POST" else [])]
    return request(case.method, case.target, headers, case.body())


@dataclass
class Chaos:
    """One run against a server whose default model is `random`."""

    server: Server
    zoo: Path

    def __post_init__(self) -> None:
        self._logits = Session.load(self.zoo / "random" / "2" / "model.safetensors").run(PIXELS)["logits"]
        self._bad = [case for case in CASES if "MB" not in case.name and "million" not in case.name]
        self._messages: dict[str, bytes] = {}
        self._form = multipart([part("image", pictures.jpeg(seed=seed)) for seed in range(3)])
        kinds = [self.good, self.good_batch, self.good_tensor, self.bad, self.bad, self.vanishing]
        self.crowd = Crowd(self.server, kinds)
        self._expect = self.crowd.expect

    def run(self, seconds: float, clients: int) -> list[int]:
        """Send for so long; memory in bytes, over time, after a while of warming up."""
        samples = self.crowd.run(seconds, clients, every_s=min(1.0, seconds / 10))
        return [sample.pss_bytes for sample in samples if sample.seconds >= seconds * WARMING_SHARE]

    def good(self, choose: random.Random, http: httpx.Client) -> None:
        picture = pictures.jpeg(choose.randint(20, 400), choose.randint(20, 400), quality=80)
        reply = http.post("/v1/classify", content=picture)
        self._expect(reply.status_code in {200, *CRUSH}, f"a good picture got {reply.status_code}: {reply.text}")

    def good_batch(self, choose: random.Random, http: httpx.Client) -> None:
        reply = http.post("/v1/classify/batch", content=self._form, headers={"Content-Type": MULTIPART})
        self._expect(reply.status_code in {200, *CRUSH}, f"a good batch got {reply.status_code}: {reply.text}")

    def good_tensor(self, choose: random.Random, http: httpx.Client) -> None:
        """Pixels whose answer is known: it has to be the right one."""
        index = choose.randrange(len(PIXELS))
        headers = {"Inference-Header-Content-Length": "0"}
        reply = http.post("/v2/models/random/infer", content=PIXELS[index].tobytes(), headers=headers)
        if reply.status_code in CRUSH:
            return
        self._expect(reply.status_code == 200, f"good pixels got {reply.status_code}: {reply.text}")
        length = int(reply.headers["inference-header-content-length"])
        found = np.frombuffer(reply.content[length:], np.float32)
        self._expect(np.array_equal(found, self._logits[index]), "an answer is that of another request")

    def bad(self, choose: random.Random, http: httpx.Client) -> None:
        case = choose.choice(self._bad)
        if case.name not in self._messages:
            self._messages[case.name] = message(case)
        reply = self.server.exchange(self._messages[case.name])
        allowed = {case.status, *CRUSH}
        self._expect(reply.status in allowed, f"{case.name} got {reply.status} instead of {case.status}")

    def vanishing(self, choose: random.Random, http: httpx.Client) -> None:
        whole = request(body=pictures.jpeg(200, 300))
        with self.server.connection() as sock:
            sock.sendall(whole[: choose.choice((0, 10, 60, len(whole) // 2, len(whole) - 1, len(whole)))])
            time.sleep(choose.choice((0.0, 0.001, 0.01)))
            if choose.random() < 0.5:  # reset instead of an orderly end
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def check_afterwards(self, memory: list[int]) -> None:
        """Raise AssertionError unless the service is as it was."""
        assert not self.crowd.failures, self.crowd.failures[:5]
        reply = read_after(self.server)
        np.testing.assert_array_equal(reply, self._logits[0])
        for name, expected in (("signet_in_flight", 1), ("signet_queue_images", 0)):  # the scrape itself is in flight
            eventually(lambda name=name, expected=expected: self.server.metric(name) == expected)
        assert self.server.metric("signet_requests_total", status="500") == 0
        assert min(memory[-3:]) - memory[0] < MEMORY_SLACK_BYTES, [size >> 20 for size in memory]


def read_after(server: Server) -> np.ndarray:
    """The logits of the first known picture, over a fresh connection."""
    headers = [("Inference-Header-Content-Length", "0")]
    with server.connection() as sock:
        sock.sendall(request("POST", "/v2/models/random/infer", headers, PIXELS[0].tobytes()))
        reply = read_reply(sock)
    assert reply.status == 200, reply.body
    return np.frombuffer(reply.body[int(reply.headers["inference-header-content-length"]) :], np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_zoo(Path(folder))
        more = {"workers": options.workers} if options.workers > 1 else {}
        server = Server(Path(folder), default_model="random", **SETTINGS, **more)
        try:
            chaos = Chaos(server, Path(folder))
            memory = chaos.run(options.seconds, options.clients)
            print(f"sent: {dict(chaos.crowd.sent)}")
            print(f"memory, MB, after warming up to the end: {[round(size / 1e6, 1) for size in memory]}")
            chaos.check_afterwards(memory)
            print("answered rightly, nothing in flight, nothing queued, memory flat")
        finally:
            server.close()


if __name__ == "__main__":
    main()
