"""Scheduling by itself: answers never cross, whoever shares a run, and what is not wanted any more never runs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import Problem, ServiceError
from app.scheduler import Ran, Scheduler
from models.xnor import Session
from tests.helpers import packed


class Echo:
    """A session whose answer is its input, and which can be held up."""

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self.runs: list[int] = []
        self.callers: list[int] = []
        self.open = threading.Event()
        self.open.set()

    file = isa = arena_bytes = resident_bytes = None

    def run(self, images: np.ndarray, callers: int = 1, /) -> Mapping[str, np.ndarray]:
        self.open.wait(10)
        self.runs.append(len(images))
        self.callers.append(callers)
        return {"logits": images.astype(np.int64) + self.offset}


def scheduler(**changed: Any) -> Scheduler:
    sound = {"capacity": 1000, "deadline_s": 60.0, "decode_threads": 1, "parallel_images": 2}
    return Scheduler(**{**sound, **changed})


REQUESTS = st.lists(st.tuples(st.integers(0, 1), st.lists(st.integers(0, 255), min_size=1, max_size=5)), max_size=30)


@given(requests=REQUESTS, max_batch=st.integers(1, 9), threads=st.integers(1, 3), delay_ms=st.sampled_from([0, 0, 2]))
@settings(max_examples=60, deadline=None)
def test_answers_never_cross(
    requests: list[tuple[int, list[int]]], max_batch: int, threads: int, delay_ms: int
) -> None:
    sessions: list[Any] = [Echo(0), Echo(1000)]
    chosen = scheduler(max_batch=max_batch, parallel_images=threads, max_batch_delay_s=delay_ms / 1000)

    async def ask(which: int, values: list[int]) -> Ran:
        images = np.array(values, np.uint8).reshape(-1, 1, 1, 1)
        return await chosen.inference.run(sessions[which], images, time.monotonic() + 60)

    async def all_of_them() -> list[Ran]:
        return await asyncio.gather(*(ask(which, values) for which, values in requests))

    answers = asyncio.run(all_of_them())
    chosen.close()
    for (which, values), ran in zip(requests, answers, strict=True):
        assert ran.outputs["logits"].ravel().tolist() == [value + 1000 * which for value in values]
        assert ran.waited_s >= 0
    runs = sessions[0].runs + sessions[1].runs
    assert sum(runs) == sum(len(values) for _, values in requests)
    assert sorted(ran.run_images for ran in answers if ran.run_images) == sorted(runs)
    assert max(runs, default=0) <= max(max_batch, max((len(values) for _, values in requests), default=0))


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=8), max_batch=st.integers(1, 16))
@settings(max_examples=20, deadline=None)
def test_a_batch_equals_its_pictures_alone(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], max_batch: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "equal" / "model.safetensors"
    if not path.is_file():
        packed.write_random(path)
    session = Session.load(path, threads=2)
    images = np.random.default_rng(0).integers(0, 256, (sum(sizes), 32, 32, 3), dtype=np.uint8)
    alone = np.concatenate([session.run(image[None])["logits"] for image in images])
    parts = np.split(images, np.cumsum(sizes)[:-1])
    chosen = scheduler(max_batch=max_batch, parallel_images=1)

    async def all_of_them() -> list[Ran]:
        return await asyncio.gather(*(chosen.inference.run(session, part, time.monotonic() + 60) for part in parts))

    answers = asyncio.run(all_of_them())
    chosen.close()
    np.testing.assert_array_equal(np.concatenate([ran.outputs["logits"] for ran in answers]), alone)


def run_behind_a_held_session(max_batch: int, late: float = 60.0) -> tuple[Echo, list[Any]]:
    """One request holds the only thread; five wait, of which the second leaves; the third has `late` seconds."""
    session = Echo()
    held: Any = session
    chosen = scheduler(max_batch=max_batch, parallel_images=1)

    async def scene() -> list[Any]:
        session.open.clear()

        def ask(value: int, within_s: float = 60.0) -> asyncio.Task[Ran]:
            images = np.full((1, 1, 1, 1), value, np.uint8)
            return asyncio.ensure_future(chosen.inference.run(held, images, time.monotonic() + within_s))

        first = ask(0)
        await asyncio.sleep(0)
        others = [ask(1), ask(2), ask(3, late), ask(4), ask(5)]
        await asyncio.sleep(0)
        if late < 60:
            await asyncio.wait([others[2]], timeout=30)
        others[1].cancel()
        session.open.set()
        return await asyncio.gather(first, *others, return_exceptions=True)

    answers = asyncio.run(scene())
    chosen.close()
    return session, answers


@pytest.mark.parametrize(("max_batch", "runs"), [(1, [1, 1, 1, 1, 1]), (3, [1, 3, 1]), (8, [1, 4])])
def test_what_waits_is_taken_together_and_who_left_is_not(max_batch: int, runs: list[int]) -> None:
    session, answers = run_behind_a_held_session(max_batch)
    assert session.runs == runs
    assert isinstance(answers[2], asyncio.CancelledError)
    assert [int(answer.outputs["logits"].item()) for answer in answers if isinstance(answer, Ran)] == [0, 1, 3, 4, 5]


@pytest.mark.parametrize("max_batch", [1, 8])
def test_who_waited_too_long_is_not_computed(max_batch: int) -> None:
    session, answers = run_behind_a_held_session(max_batch, late=0.02)
    assert isinstance(answers[3], ServiceError)
    assert answers[3].problem is Problem.DEADLINE
    assert sum(session.runs) == 4


def test_a_failure_reaches_all_who_shared_the_run_and_nobody_else() -> None:
    class Broken(Echo):
        def run(self, images: np.ndarray, callers: int = 1, /) -> Mapping[str, np.ndarray]:
            raise RuntimeError("no")

    sessions: list[Any] = [Broken(), Echo()]
    chosen = scheduler(max_batch=8)

    async def scene() -> list[Any]:
        image = np.zeros((1, 1, 1, 1), np.uint8)
        asked = [chosen.inference.run(session, image, time.monotonic() + 60) for session in sessions for _ in range(3)]
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(scene())
    chosen.close()
    assert [type(answer) for answer in answers] == [RuntimeError] * 3 + [Ran] * 3


def test_a_delay_gathers_what_comes_meanwhile() -> None:
    """A batch waits for its delay, here longer than anybody would, or until it is full."""
    session: Any = Echo()
    chosen = scheduler(max_batch=3, max_batch_delay_s=3600.0)

    async def scene() -> None:
        image = np.zeros((1, 1, 1, 1), np.uint8)

        def ask() -> asyncio.Task[Ran]:
            return asyncio.ensure_future(chosen.inference.run(session, image, time.monotonic() + 60))

        first, second = ask(), ask()
        done, _ = await asyncio.wait([first, second], timeout=0.05)
        assert not done
        await asyncio.gather(first, second, ask())

    asyncio.run(scene())
    chosen.close()
    assert session.runs == [3]


def test_a_batch_that_does_not_fill_runs_when_its_delay_is_over() -> None:
    session: Any = Echo()
    chosen = scheduler(max_batch=3, max_batch_delay_s=0.01)

    async def scene() -> None:
        image = np.zeros((1, 1, 1, 1), np.uint8)
        await chosen.inference.run(session, image, time.monotonic() + 60)

    asyncio.run(scene())
    chosen.close()
    assert session.runs == [1]


@pytest.mark.parametrize(("admitted", "callers"), [(1, 1), (2, 2), (3, 2)])
def test_a_run_is_told_of_the_requests_beside_it_as_far_as_they_run_at_once(admitted: int, callers: int) -> None:
    session: Any = Echo()
    chosen = scheduler(parallel_images=2)

    async def scene() -> None:
        with ExitStack() as others:
            for _ in range(admitted - 1):
                others.enter_context(chosen.admit(5))
            with chosen.admit(4):  # one request with four images
                await chosen.inference.run(session, np.zeros((4, 1, 1, 1), np.uint8), time.monotonic() + 60)

    asyncio.run(scene())
    chosen.close()
    assert session.callers == [callers]
