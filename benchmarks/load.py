"""An HTTP/1.1 load client on bare asyncio streams, light enough to share two cores with what it measures.

`closed` keeps so many clients asking, each waiting for its answer; `closed_by_wrk` is the same by wrk, which takes less
of the CPUs still; `open_loop` sends at a rate, whatever comes back.
Neither can hang: a request without an answer after `PATIENCE_S` counts as late, and its connection is dropped.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

PATIENCE_S = 20
WRK_REPORT = """
function done(summary, latency)
    local times = {}
    for i = 1, #latency do
        local us, count = latency(i)
        times[i] = string.format("[%d,%d]", us, count)
    end
    local e = summary.errors
    local file = io.open("RESULT", "w")
    file:write(string.format(
        '{"us":%d,"requests":%d,"errors":%d,"broken":%d,"late":%d,"latency":[%s]}', summary.duration, summary.requests,
        e.status, e.connect + e.read + e.write, e.timeout, table.concat(times, ",")))
    file:close()
end
"""
MOST_OPEN = 1000
"""Requests that `open_loop` leaves unanswered at once; those beyond are not sent, and counted."""


@dataclass
class Load:
    """What came back: statuses, and the milliseconds of each answer by status, from the first byte sent to the last."""

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    took_ms: dict[int, list[float]] = field(default_factory=dict)
    broken: int = 0
    late: int = 0
    unsent: int = 0

    def add(self, status: int, seconds: float) -> None:
        self.statuses[status] += 1
        self.took_ms.setdefault(status, []).append(1e3 * seconds)

    @property
    def answers(self) -> int:
        return sum(self.statuses.values())

    @property
    def rate(self) -> float:
        """Answers with 200 a second."""
        return self.statuses[200] / self.seconds

    def quantile_ms(self, share: float, status: int = 200) -> float:
        values = sorted(self.took_ms.get(status, [])) or [float("nan")]
        return values[min(len(values) - 1, int(share * len(values)))]

    def check_all_answered(self, who: str) -> None:
        """Raise RuntimeError unless every request was answered with 200."""
        if set(self.statuses) != {200} or self.broken or self.late:
            raise RuntimeError(f"{who}: {dict(self.statuses)}, {self.broken} broken, {self.late} late")


def post(path: str, body: bytes, content_type: str) -> bytes:
    """A request as bytes."""
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def form(name: str, data: bytes) -> tuple[bytes, str]:
    """A multipart body of one file, and its content type."""
    head = f'--frontier\r\nContent-Disposition: form-data; name="{name}"; filename="a.jpg"\r\n\r\n'
    return head.encode() + data + b"\r\n--frontier--\r\n", "multipart/form-data; boundary=frontier"


class Connection:
    """One kept connection, opened again after a server closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, message: bytes, load: Load) -> None:
        """Send a request, read the answer to its end, and note what became of it."""
        sent = time.perf_counter()
        try:
            async with asyncio.timeout(PATIENCE_S):
                status = await self._exchange(message)
        except TimeoutError:
            load.late += 1
            self.close()
        except (OSError, asyncio.IncompleteReadError):
            load.broken += 1
            self.close()
        else:
            load.add(status, time.perf_counter() - sent)

    async def _exchange(self, message: bytes) -> int:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(message)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        await reader.readexactly(length)
        if b"connection: close" in head:
            self.close()
        return int(head[9:12])

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _closed(port: int, messages: Sequence[bytes], clients: int, seconds: float) -> Load:
    load, turn = Load(), itertools.cycle(messages)
    begun = time.perf_counter()

    async def client() -> None:
        connection = Connection(port)
        while time.perf_counter() - begun < seconds:
            await connection.ask(next(turn), load)
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    load.seconds = time.perf_counter() - begun
    return load


async def _open_loop(port: int, messages: Sequence[bytes], rate: float, seconds: float) -> Load:
    load, turn, idle = Load(), itertools.cycle(messages), list[Connection]()
    begun = time.perf_counter()

    async def one() -> None:
        connection = idle.pop() if idle else Connection(port)
        await connection.ask(next(turn), load)
        idle.append(connection)

    tasks = set[asyncio.Task[None]]()
    for index in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begun + index / rate - time.perf_counter()))
        if len(tasks) < MOST_OPEN:
            task = asyncio.create_task(one())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        else:
            load.unsent += 1
    load.seconds = time.perf_counter() - begun
    await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    return load


def _run(work: Coroutine[Any, Any, Load]) -> Load:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def closed(port: int, messages: Sequence[bytes], clients: int, seconds: float) -> Load:
    """So many clients for so long, each with one request at a time."""
    return _run(_closed(port, messages, clients, seconds))


def closed_by_wrk(port: int, message: bytes, clients: int, seconds: float) -> Load:
    """The same with one message, by wrk on one thread. An answer that is no error counts as 200, any other as 500.

    wrk adds to the times of answers what its clients, had they not waited, would have seen of long ones.
    """
    head, _, body = message.partition(b"\r\n\r\n")
    first, *fields = head.decode().split("\r\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.joinpath("body").write_bytes(body)
        headers = dict(each.split(": ", 1) for each in fields)
        method, path, _ = first.split()
        lines = [f"wrk.method = {json.dumps(method)}", f'wrk.body = io.open("{folder}/body", "rb"):read("*a")']
        lines += [f"wrk.headers[{json.dumps(key)}] = {json.dumps(value)}" for key, value in headers.items()]
        folder.joinpath("script.lua").write_text("\n".join(lines) + WRK_REPORT.replace("RESULT", f"{folder}/result"))
        command = ["wrk", "-t1", f"-c{clients}", f"-d{round(seconds)}s", f"--timeout={PATIENCE_S}s"]
        url = f"http://127.0.0.1:{port}{path}"
        subprocess.run([*command, f"--script={folder}/script.lua", url], check=True, stdout=subprocess.DEVNULL)
        found = json.loads(folder.joinpath("result").read_text())
    load = Load(seconds=found["us"] / 1e6, broken=found["broken"], late=found["late"])
    load.statuses = +Counter({200: found["requests"] - found["errors"], 500: found["errors"]})
    load.took_ms[200] = [us / 1e3 for us, count in found["latency"] for _ in range(count)]
    return load


def open_loop(port: int, messages: Sequence[bytes], rate: float, seconds: float) -> Load:
    """`rate` requests a second for so long, without waiting for answers."""
    return _run(_open_loop(port, messages, rate, seconds))


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
