"""What the workers of one service have in common: their models, and the account of what they answered.

Workers are processes of their own (`app.workers`). A load or an unload that one of them receives holds for all, and
what one of them tells of models and statistics is true of all. They talk over Unix sockets in a folder that only their
user can enter: one JSON object a line, one answer a connection. A service of one process is a fleet without others.

A load has two steps. Each worker reads and warms the model beside the one that it has; when all could, each puts
it in its place. If any could not, nothing has changed. One lock, held over files that all see, keeps changes apart, and
keeps them away from a worker that has just started and is reading the models: those versions that the others serve,
whatever has come into the repository since.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from app.errors import Problem, ServiceError
from app.metrics import ModelFacts, facts_of
from app.repository import Known, Repository, Version
from app.statistics import ModelAccount, Statistics, total

ANSWER_S = 5.0
"""A worker that tells nothing for so long is left out of what is told."""
LOAD_S = 120.0
_MAX_LINE_BYTES = 8 << 20

logger = logging.getLogger("signet.fleet")


@dataclass(frozen=True)
class Account:
    """What one worker has: its process id, the facts of its models, and what they answered."""

    pid: int
    models: list[ModelFacts]
    statistics: list[ModelAccount]


_ACCOUNT = TypeAdapter(Account)
_KNOWN = TypeAdapter(dict[str, dict[int, Known]])
_VERSIONS = "versions.json"


class Fleet:
    """The workers as one of them sees them; `folder` is where they meet, None for a service of one process."""

    def __init__(
        self, repository: Repository, statistics: Statistics, folder: Path | None = None, slot: int = 0
    ) -> None:
        self._repository = repository
        self._statistics = statistics
        self._folder = folder
        self._slot = slot
        self._prepared: dict[str, dict[int, Version]] = {}
        self._server: asyncio.Server | None = None
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Load the models, then listen to the others."""
        async with self._alone():
            noted = self._noted()
            await asyncio.to_thread(self._repository.load_all, noted)
            if self._folder is None:
                return
            if noted is None:
                self._note()
            path = self._folder / f"{self._slot}.sock"
            path.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(self._answer, path, limit=_MAX_LINE_BYTES)

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    async def load(self, name: str) -> None:
        """Load a model anew in all workers, or change nothing. Raises ServiceError as `Repository.prepare` does."""
        async with self._alone():
            versions = await asyncio.to_thread(self._repository.prepare, name)
            try:
                await self._ask_others("prepare", LOAD_S, name=name)
            except ServiceError:
                await self._ask_others("forget", ANSWER_S, name=name)
                raise
            self._repository.commit(name, versions)
            await self._ask_others("commit", ANSWER_S, name=name)
            self._note()

    async def unload(self, name: str) -> None:
        """Unload a model in all workers. Raises ServiceError UNKNOWN_MODEL."""
        async with self._alone():
            self._repository.unload(name)
            self._note()
            await self._ask_others("unload", ANSWER_S, name=name)

    async def accounts(self) -> list[Account]:
        """The accounts of all workers that answer, this one's first."""
        others = await self._ask_others("account", ANSWER_S)
        return [self._account(), *(_ACCOUNT.validate_python(account) for account in others)]

    async def statistics(self) -> Statistics:
        """What all workers have answered together."""
        return total(chain.from_iterable(account.statistics for account in await self.accounts()))

    def _account(self) -> Account:
        return Account(os.getpid(), facts_of(self._repository), self._statistics.accounts())

    async def _ask_others(self, command: str, within_s: float, **arguments: str) -> list[Any]:
        """The answers of all others; those that are gone or silent have none. Raises the first error that one tells."""
        if self._folder is None:
            return []
        paths = [path for path in self._folder.glob("*.sock") if path.stem != str(self._slot)]
        asked = [_ask(path, {"do": command, **arguments}, within_s) for path in paths]
        answers = [answer for answer in await asyncio.gather(*asked) if answer is not None]
        for answer in answers:
            if "problem" in answer:
                raise ServiceError(Problem[answer["problem"]], answer["detail"])
        return [answer["told"] for answer in answers]

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = json.loads(await reader.readline())
            try:
                answer = {"told": await self._do(asked["do"], asked.get("name", ""))}
            except ServiceError as error:
                answer = {"problem": error.problem.name, "detail": error.detail}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except (OSError, ValueError) as error:
            logger.warning("a worker asked and was not answered", extra={"reason": str(error)})
        finally:
            writer.close()

    async def _do(self, command: str, name: str) -> Any:
        if command == "account":
            return _ACCOUNT.dump_python(self._account(), mode="json")
        if command == "prepare":
            self._prepared[name] = await asyncio.to_thread(self._repository.prepare, name)
        elif command == "forget":
            self._prepared.pop(name, None)
        elif command == "commit" and name in self._prepared:
            self._repository.commit(name, self._prepared.pop(name))
        elif command == "unload" and name in self._repository.names:
            self._repository.unload(name)
        return None

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Hold the lock on changes."""
        async with self._changing:
            if self._folder is None:
                yield
                return
            with (self._folder / "lock").open("w") as file:
                await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
                yield

    def _noted(self) -> dict[str, dict[int, Known]] | None:
        """The versions that a worker which starts now has to serve; None for the first one."""
        if self._folder is None or not (self._folder / _VERSIONS).is_file():
            return None
        return _KNOWN.validate_json((self._folder / _VERSIONS).read_bytes())

    def _note(self) -> None:
        """Write down which versions serve."""
        if self._folder is not None:
            (self._folder / _VERSIONS).write_bytes(_KNOWN.dump_json(self._repository.known))


async def _ask(path: Path, question: dict[str, str], within_s: float) -> dict[str, Any] | None:
    try:
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_unix_connection(path, limit=_MAX_LINE_BYTES)
            try:
                writer.write(json.dumps(question).encode() + b"\n")
                answer: dict[str, Any] = json.loads(await reader.readline())
                return answer
            finally:
                writer.close()
    except (OSError, ValueError, TimeoutError) as error:
        logger.warning("a worker does not answer", extra={"worker": path.stem, "reason": repr(error)})
        return None
