"""Pictures answered by a server: several in a request, several requests in flight.

Small pictures in requests of eight got about twice as many answers a second as alone (200 photographs of
500 x 375 px, client and server on the same two busy cores): what a request costs is shared by its pictures.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Self, cast

import httpx

from app.predict.answers import Answer, PredictError, failed, read, side_by_side

TIMEOUT_S = 60.0
"""How long an answer is awaited; the server hears of it, and computes nothing for who has gone."""
GRACE_S = 2.0
"""How much longer the client waits for the server to say that it was too late."""
PATIENCE_S = 60.0
"""How long a picture is offered again to a server that says it is full or not ready."""
MAX_BATCH_PICTURES = 8
MAX_BATCH_BYTES = 8 << 20
"""What goes into one request, well below what a server takes as it is set up by default."""
_BUSY = frozenset({429, 503})
_TOO_LARGE = 413
_ROUTES = {"classification": "v1/classify", "pose": "v1/pose"}


class _RefusedError(Exception):
    """Why a request has no answer, with its status where there was one."""

    def __init__(self, why: str, status: int = 0) -> None:
        super().__init__(why)
        self.status = status


class Remote:
    """A model of a server and what it is asked for. To be closed, or used as a context."""

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        top_k: int,
        boxes: Sequence[Sequence[float]] = (),
        jobs: int | None = None,
        task: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Ask the server about the model, by default its own default, of the task if one is given.

        Raises PredictError where it does not answer, or refuses.
        """
        headers = {"User-Agent": "signet-predict"} | ({"X-API-Key": api_key} if api_key else {})
        self._jobs = jobs or 4
        self._timeout_s = timeout_s
        limits = httpx.Limits(max_connections=self._jobs, max_keepalive_connections=self._jobs)
        try:
            self._client = httpx.Client(base_url=url, headers=headers, timeout=timeout_s + GRACE_S, limits=limits)
            self._name, self.task = self._find(model, task)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise PredictError(f"{url}: {self._reason(error)}") from error
        self._boxes = boxes
        self._top_k = top_k

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def _find(self, model: str | None, wanted: str | None) -> tuple[str, str]:
        """The model's name, the default one's where none is given, and its task."""
        name = model or self._default(wanted)
        if name is None:
            raise PredictError(f"The server has no model {f'for {wanted} ' if wanted else ''}that is ready.")
        task = self._get(f"v1/models/{httpx.URL(path='/' + name).raw_path.decode()[1:]}").get("task")
        if task not in _ROUTES:
            raise PredictError(f"The server's model {name!r} is not ready.")
        return name, task

    def _default(self, task: str | None) -> str | None:
        listed = self._get("v1/models")
        name: str | None = listed.get("default")
        if task is None:
            return name
        fit = [m["name"] for m in listed.get("models", ()) if m.get("state") == "ready" and m.get("task") == task]
        return name if name in fit else next(iter(fit), None)

    def _get(self, path: str) -> dict[str, Any]:
        reply = self._client.get(path)
        if reply.status_code != 200:
            raise PredictError(f"{reply.url}: {_told(reply)}")
        found = _json(reply)
        if not isinstance(found, dict):
            raise PredictError(f"{reply.url}: the answer is not that of a Signet server.")
        return found

    def answers(self, paths: Iterable[Path]) -> Iterator[Answer]:
        """Send as many requests at once as there are jobs."""
        return chain.from_iterable(side_by_side(self._answer, _groups(paths), self._jobs))

    def _answer(self, paths: Sequence[Path]) -> list[Answer]:
        """The answers to one request's pictures, those that cannot be read included."""
        answers = [read(path) for path in paths]
        good = {index: data for index, data in enumerate(answers) if isinstance(data, bytes)}
        found = self._together([paths[index] for index in good], list(good.values()))
        for index, answer in zip(good, found, strict=True):
            answers[index] = answer
        return cast(list[Answer], answers)

    def _together(self, paths: Sequence[Path], pictures: Sequence[bytes]) -> list[Answer]:
        if len(paths) < 2:
            return [self._alone(path, data) for path, data in zip(paths, pictures, strict=True)]
        try:
            found = self._ask("/batch", pictures)
        except _RefusedError as refused:
            if refused.status == _TOO_LARGE:
                return [self._alone(path, data) for path, data in zip(paths, pictures, strict=True)]
            return [failed(path, str(refused)) for path in paths]
        items = found.pop("results")
        return [_item(path, found, item) for path, item in zip(paths, items, strict=True)]

    def _alone(self, path: Path, data: bytes) -> Answer:
        try:
            return {"path": str(path), **self._ask("", [data])}
        except _RefusedError as refused:
            return failed(path, str(refused))

    def _ask(self, end: str, pictures: Sequence[bytes]) -> dict[str, Any]:
        """What the server says of pictures; a busy one is asked again when it says so. Raises _RefusedError."""
        files = [("image", (str(index), data, "application/octet-stream")) for index, data in enumerate(pictures)]
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                reply = self._client.post(_ROUTES[self.task] + end, files=files, params=self._query(end, len(pictures)))
            except httpx.HTTPError as error:
                raise _RefusedError(self._reason(error)) from error
            wait_s = _retry_after_s(reply)
            if reply.status_code not in _BUSY or time.monotonic() + wait_s > give_up:
                break
            time.sleep(wait_s)
        found = _json(reply)
        if reply.status_code != 200 or not isinstance(found, dict):
            raise _RefusedError(_told(reply), reply.status_code)
        found.pop("timing_ms", None)
        return found

    def _query(self, end: str, count: int) -> dict[str, Any]:
        query = {"model": self._name, "timeout_ms": math.ceil(self._timeout_s * 1000)}
        if self.task == "classification":
            return {**query, "top_k": self._top_k}
        if not self._boxes:
            return query
        return {**query, "boxes": json.dumps([self._boxes] * count if end else self._boxes)}

    def _reason(self, error: Exception) -> str:
        if isinstance(error, httpx.TimeoutException):
            return f"no answer within {self._timeout_s:g} s"
        return str(error) or type(error).__name__


def _groups(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """Pictures that go together in one request."""
    group: list[Path] = []
    held = 0
    for path in paths:
        size = _bytes_of(path)
        if group and (len(group) == MAX_BATCH_PICTURES or held + size > MAX_BATCH_BYTES):
            yield group
            group, held = [], 0
        group.append(path)
        held += size
    if group:
        yield group


def _bytes_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it is not sent: reading it says why
        return 0


def _item(path: Path, shared: Mapping[str, Any], item: Mapping[str, Any]) -> Answer:
    """The answer to one picture of a batch, as it would be alone."""
    if item.get("error"):
        return failed(path, str(item["error"]["detail"]))
    own = {name: value for name, value in item.items() if name != "index" and value is not None}
    return {"path": str(path), **shared, **own}


def _retry_after_s(reply: httpx.Response) -> float:
    given = reply.headers.get("Retry-After", "")
    return float(given) if given.isdecimal() else 1.0


def _json(reply: httpx.Response) -> Any:
    try:
        return reply.json()
    except ValueError:
        return None


def _told(reply: httpx.Response) -> str:
    """What an answer that is none says: a problem's detail, or the status."""
    problem = _json(reply)
    detail = problem.get("detail") if isinstance(problem, dict) else None
    return str(detail or f"the server answered {reply.status_code} {reply.reason_phrase}")
