"""Ten minutes of ordinary requests to the models that ship: no error, no wrong answer, and memory that stays.

    python -m tests.e2e.soak [--minutes 10] [--clients 4] [--figure FILE]      (make soak)

Clients mix classification (single, batch), pose (whole pictures, boxes, overlays) and the Open Inference Protocol
(pixels, encoded pictures), with photographs of several sizes. Every answer is compared with that of the same model in
this process. Now and then the clients pause until all answers are there, and the service's memory is noted: resident,
in MB of 10^6 bytes. The first fifth of the time warms up. After it memory counts as flat if a line through all samples
rises by less than `MOST_MB_A_MINUTE`, and the median of the last minute (the last tenth of a shorter run) is within
`MOST_CHANGE` of that of the first.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

import app
from app.engine import available_cpus
from app.predict.local import Local
from app.settings import Settings, shipped_zoo
from tests.e2e.crowd import Crowd, Sample
from tests.helpers.server import Server

WARMING_SHARE = 0.2
MOST_MB_A_MINUTE = 0.2
MOST_CHANGE = 0.02
EVERY_S = 2.0
TOLD_EVERY_S = 30.0
LONG_SIDES_PX = (160, 440, 900, 1600)
DRAWN_PX = 900
"""The longest side of pictures that are drawn into: PNG of larger ones would be most of the work."""
BOXES = [(20.0, 10.0, 110.0, 140.0), (60.0, 20.0, 90.0, 100.0)]


@dataclass(frozen=True)
class Photograph:
    """A JPEG, and what the models answer to it."""

    data: bytes
    long_side_px: int
    labels: list[tuple[str, float]]
    person: list[list[float]]
    people: list[list[list[float]]]


def _keypoints(answer: dict[str, Any]) -> list[list[list[float]]]:
    return [[[point["x"], point["y"]] for point in person["keypoints"]] for person in answer["people"]]


def photographs(folder: Path) -> list[Photograph]:
    """The page's photographs in several sizes, each answered in this process."""
    settings = Settings(models=(shipped_zoo(),))
    classifier = Local.open(settings, None, top_k=5, task="classification")
    whole, boxed = (Local.open(settings, None, top_k=5, boxes=boxes, task="pose") for boxes in ((), BOXES))
    paths = []
    for source in sorted((Path(app.__path__[0]) / "page").glob("*.jpg")):
        for side in LONG_SIDES_PX:
            picture = Image.open(source)
            scale = side / max(picture.size)
            picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
            paths.append(folder / f"{source.stem}-{side}.jpg")
            picture.save(paths[-1], quality=88)
    answered = zip(paths, classifier.answers(paths), whole.answers(paths), boxed.answers(paths), strict=True)
    return [
        Photograph(
            path.read_bytes(),
            max(Image.open(path).size),
            [(found["label"], found["score"]) for found in labels["predictions"]],
            _keypoints(alone)[0],
            _keypoints(people),
        )
        for path, labels, alone, people in answered
    ]


class Soak:
    """The kinds of requests; each raises AssertionError for an answer that is not the right one."""

    def __init__(self, photos: Sequence[Photograph]) -> None:
        self._photos = photos
        model = Local.open(Settings(models=(shipped_zoo(),)), None, top_k=5, task="classification")
        self._name = "cifar10-resnet18"
        side = model.session.file.header.input
        self._pixels = np.random.default_rng(0).integers(0, 256, (8, side.height, side.width, 3), dtype=np.uint8)
        self._logits = model.session.run(self._pixels)["logits"]
        self.kinds = [
            self.classify, self.classify, self.classify_form, self.classify_batch,
            self.pose, self.pose_boxes, self.overlay, self.pixels, self.encoded,
        ]  # fmt: skip

    @staticmethod
    def _check_labels(found: list[dict[str, Any]], photo: Photograph) -> None:
        assert [entry["label"] for entry in found] == [label for label, _ in photo.labels]
        scores = [entry["score"] for entry in found]
        np.testing.assert_allclose(scores, [score for _, score in photo.labels], atol=2e-6)

    def classify(self, choose: random.Random, http: httpx.Client) -> None:
        photo = choose.choice(self._photos)
        reply = http.post("/v1/classify", content=photo.data).raise_for_status()
        self._check_labels(reply.json()["predictions"], photo)

    def classify_form(self, choose: random.Random, http: httpx.Client) -> None:
        photo = choose.choice(self._photos)
        reply = http.post("/v1/classify", files={"image": photo.data}, data={"top_k": "5"}).raise_for_status()
        self._check_labels(reply.json()["predictions"], photo)

    def classify_batch(self, choose: random.Random, http: httpx.Client) -> None:
        photos = choose.sample(self._photos, 3)
        files = [("image", photo.data) for photo in photos]
        reply = http.post("/v1/classify/batch", files=files).raise_for_status()
        for result, photo in zip(reply.json()["results"], photos, strict=True):
            self._check_labels(result["predictions"], photo)

    def pose(self, choose: random.Random, http: httpx.Client) -> None:
        photo = choose.choice(self._photos)
        reply = http.post("/v1/pose", content=photo.data).raise_for_status()
        np.testing.assert_allclose(_keypoints(reply.json())[0], photo.person, atol=0.01)

    def pose_boxes(self, choose: random.Random, http: httpx.Client) -> None:
        photo = choose.choice(self._photos)
        reply = http.post("/v1/pose", content=photo.data, params={"boxes": json.dumps(BOXES)}).raise_for_status()
        np.testing.assert_allclose(_keypoints(reply.json()), photo.people, atol=0.01)

    def overlay(self, choose: random.Random, http: httpx.Client) -> None:
        photo = choose.choice([photo for photo in self._photos if photo.long_side_px <= DRAWN_PX])
        reply = http.post("/v1/pose", content=photo.data, params={"visualize": "true"}).raise_for_status()
        with Image.open(io.BytesIO(reply.content)) as drawn, Image.open(io.BytesIO(photo.data)) as sent:
            assert drawn.format == "PNG"
            assert drawn.size == sent.size

    def pixels(self, choose: random.Random, http: httpx.Client) -> None:
        index = choose.randrange(len(self._pixels))
        headers = {"Inference-Header-Content-Length": "0"}
        body = self._pixels[index].tobytes()
        reply = http.post(f"/v2/models/{self._name}/infer", content=body, headers=headers).raise_for_status()
        length = int(reply.headers["inference-header-content-length"])
        np.testing.assert_array_equal(np.frombuffer(reply.content[length:], np.float32), self._logits[index])

    def encoded(self, choose: random.Random, http: httpx.Client) -> None:
        photo = choose.choice(self._photos)
        size = len(photo.data).to_bytes(4, "little")
        tensor = {
            "name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(photo.data) + 4}
        }  # fmt: skip
        wanted = [{"name": "logits", "parameters": {"classification": 1}}]
        head = json.dumps({"inputs": [tensor], "outputs": wanted}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        url = f"/v2/models/{self._name}/infer"
        reply = http.post(url, content=head + size + photo.data, headers=headers).raise_for_status()
        (output,) = reply.json()["outputs"]
        assert output["data"][0].endswith(f":{photo.labels[0][0]}")


@dataclass(frozen=True)
class Memory:
    """What became of memory after warming up, in MB."""

    first_mb: float
    last_mb: float
    mb_a_minute: float

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Memory:
        whole_s = samples[-1].seconds
        window_s = min(60.0, whole_s / 10)
        later = [sample for sample in samples if sample.seconds >= WARMING_SHARE * whole_s]
        first = [s.rss_bytes for s in later if s.seconds < later[0].seconds + window_s]
        last = [s.rss_bytes for s in later if s.seconds > whole_s - window_s]
        slope = np.polyfit([s.seconds / 60 for s in later], [s.rss_bytes / 1e6 for s in later], 1)[0]
        return cls(statistics.median(first) / 1e6, statistics.median(last) / 1e6, float(slope))

    @property
    def change(self) -> float:
        return self.last_mb / self.first_mb - 1

    @property
    def flat(self) -> bool:
        return self.mb_a_minute < MOST_MB_A_MINUTE and abs(self.change) < MOST_CHANGE


def draw(samples: Sequence[Sample], path: Path, title: str) -> None:
    """Memory and requests a second over the minutes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    minutes = [sample.seconds / 60 for sample in samples]
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 5), sharex=True, height_ratios=(2, 1))
    above.plot(minutes, [s.rss_bytes / 1e6 for s in samples], label="resident", color="#1f6f54")
    above.plot(minutes, [s.pss_bytes / 1e6 for s in samples], label="PSS", color="#b9c2bd")
    above.axvspan(0, WARMING_SHARE * minutes[-1], color="#f2f2ee", label="warming up")
    above.set_ylim(0, None)
    above.set_ylabel("MB")
    above.set_title(title, fontsize=10, loc="left")
    above.legend(loc="lower right", frameon=False, fontsize=8)
    step = max(1, round(10 / EVERY_S))
    rates = [
        (b.requests - a.requests) / (b.seconds - a.seconds)
        for a, b in zip(samples[::step], samples[step::step], strict=False)
    ]
    below.plot(minutes[step::step][: len(rates)], rates, color="#1f6f54")
    below.set_ylim(0, None)
    below.set_ylabel("requests/s")
    below.set_xlabel("minutes")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def reporter() -> Callable[[Sample], None]:
    """Writes a line now and then."""
    due = 0.0

    def tell(sample: Sample) -> None:
        nonlocal due
        if sample.seconds >= due:
            due += TOLD_EVERY_S
            size = f"PSS {sample.pss_bytes / 1e6:6.1f} MB, resident {sample.rss_bytes / 1e6:6.1f} MB"
            print(f"{sample.seconds / 60:5.1f} min  {sample.requests:>7} requests  {size}", flush=True)

    return tell


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--figure", type=Path, help="draw memory and requests over time")
    options = parser.parse_args()
    print(
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {available_cpus()} CPUs, Python {platform.python_version()}, "
        f"{options.workers} worker(s), {options.clients} clients, the models that ship"
    )
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(photographs(Path(folder)))
    server = Server(shipped_zoo(), **({"workers": options.workers} if options.workers > 1 else {}))
    try:
        crowd = Crowd(server, soak.kinds)
        samples = crowd.run(60 * options.minutes, options.clients, EVERY_S, at_rest=True, tell=reporter())
        answered = server.metric("signet_requests_total", status="200")
    finally:
        status = server.stop()
        server.close()
    memory = Memory.of(samples)
    print("sent: " + ", ".join(f"{count} x {kind}" for kind, count in sorted(crowd.sent.items())))
    print(f"failures: {len(crowd.failures)}; the service counts {answered:.0f} answers with 200; exit status {status}")
    for failure in crowd.failures[:5]:
        print(f"  {failure}")
    print(
        f"resident at rest, after warming up {memory.first_mb:.1f} MB, in the end {memory.last_mb:.1f} MB "
        f"({memory.change:+.1%}, at most {MOST_CHANGE:.0%}); slope {memory.mb_a_minute:+.3f} MB a minute (less than "
        f"{MOST_MB_A_MINUTE})"
    )
    if options.figure is not None:
        title = f"{crowd.sent.total()} requests in {options.minutes:g} minutes, {len(crowd.failures)} failures"
        draw(samples, options.figure, title)
    passed = not crowd.failures and memory.flat and status == 0
    print("PASSED" if passed else "FAILED")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
