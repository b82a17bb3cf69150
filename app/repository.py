"""The models on disk: `<root>/<name>/<version>/model.safetensors`.

Roots are searched in order; a name belongs to the first root that has it. Versions are whole numbers; which of them
serve is a policy (`app.versions`), and the highest that loaded answers where a request names none. Whatever a root
contains, nothing outside it is opened: a link that leads out is refused. A version that does not load is reported with
its reason, and the others serve; at the start, where only so many of the highest are wanted, the next lower one too.

Models are loaded anew while they serve: the versions of a name that have changed are read and warmed beside the old
ones, and all take their place at once, or nothing changes. A `Version` that requests have seen is never changed, so
that each request is answered by the session it began with; its memory is free with the last of them. Files should be
replaced by renaming, never be written in place.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from app.errors import Problem, ServiceError
from app.versions import VERSION, VersionPolicies
from models.packing.file import MAX_HEADER_BYTES, PackedFile, PackedFileError

MODEL_FILE = "model.safetensors"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

logger = logging.getLogger("signet.repository")


class Session(Protocol):
    """What the service needs of an engine session (`models.xnor.Session` is one)."""

    @property
    def file(self) -> PackedFile:
        """The packed file it runs."""

    @property
    def isa(self) -> str:
        """The instruction set it chose."""

    @property
    def arena_bytes(self) -> int:
        """Working memory of one run."""

    @property
    def resident_bytes(self) -> int:
        """Memory that the loaded weights take."""

    def run(self, images: NDArray[np.uint8], callers: int = 1, /) -> Mapping[str, NDArray[Any]]:
        """Outputs by name for uint8 `[N, H, W, 3]`, with its share of the threads among so many callers."""


class State(StrEnum):
    """Where a version of a model stands."""

    FOUND = "found"
    READY = "ready"
    FAILED = "failed"
    UNLOADED = "unloaded"


@dataclass
class Version:
    """One version of one model.

    Attributes
    ----------
    path : the packed file.
    session : the engine session, while `state` is READY.
    task : what it does; None until it was loaded, and where a file that failed does not say; kept when it is unloaded.
    error : why it cannot serve, while `state` is FAILED; names no folder, as clients may read it.
    load_s : seconds that loading and warming took.
    identity : tells the file that was loaded from any other at its path.
    """

    name: str
    version: int
    path: Path
    state: State = State.FOUND
    session: Session | None = None
    task: str | None = None
    error: str | None = None
    load_s: float = 0.0
    identity: tuple[int, ...] = ()

    def fail(self, error: str) -> None:
        """Record why this version cannot serve."""
        self.state, self.session, self.error = State.FAILED, None, error
        place = {"model": self.name, "version": self.version, "path": str(self.path)}
        logger.error("model failed", extra={**place, "reason": error})

    def ready_session(self) -> Session:
        """The session; raises ServiceError MODEL_UNAVAILABLE while there is none."""
        if self.session is None:
            why = "is unloaded" if self.state is State.UNLOADED else "did not load"
            detail = f"Model {self.name!r} version {self.version} {why}."
            raise ServiceError(Problem.MODEL_UNAVAILABLE, detail, retry_after_s=30)
        return self.session


@dataclass(frozen=True)
class Known:
    """What another process knows of a version: where it stands, what it does, why it failed."""

    state: State
    task: str | None = None
    error: str | None = None


class Repository:
    """The models of several roots, loaded by `load` (a function from a packed file's path to a session)."""

    def __init__(
        self,
        roots: Sequence[Path],
        load: Callable[[Path], Session],
        default: str | None = None,
        policies: VersionPolicies | None = None,
    ) -> None:
        self.roots = tuple(roots)
        self.policies = policies or VersionPolicies()
        self._load = load
        self._default = default
        self._changing = threading.Lock()
        self._models = {name: self._wanted(root, name) for name, root in scan(self.roots).items()}

    def __iter__(self) -> Iterator[Version]:
        """Every version that serves or should, by name and number."""
        return (versions[number] for _, versions in sorted(self._models.items()) for number in sorted(versions))

    @property
    def names(self) -> list[str]:
        """The names of all models, sorted."""
        return sorted(self._models)

    def load_all(self, known: Mapping[str, Mapping[int, Known]] | None = None) -> None:
        """Load and warm the versions that the policies choose; a failure is recorded, not raised.

        With what another process knows (its `known`), exactly the versions that it has, whatever is in the roots now.
        """
        roots = scan(self.roots)
        if known is None:
            self._models = {name: self._loaded(root, name) for name, root in roots.items()}
            return
        self._models = {
            name: {number: self._like(roots.get(name), name, number, fact) for number, fact in versions.items()}
            for name, versions in known.items()
        }

    @property
    def known(self) -> dict[str, dict[int, Known]]:
        """What this process knows of every version."""
        return {
            name: {number: Known(v.state, v.task, v.error) for number, v in versions.items()}
            for name, versions in self._models.items()
        }

    def _wanted(self, root: Path, name: str) -> dict[int, Version]:
        """The versions that the policy chooses, not loaded."""
        found = scan_model(root, name)
        return {number: _existing(found, root, name, number) for number in self.policies.of(name).chosen(found)}

    def _loaded(self, root: Path, name: str) -> dict[int, Version]:
        """The versions that the policy chooses, loaded; where one fails, the next one that it would have chosen too."""
        found, policy = scan_model(root, name), self.policies.of(name)
        versions: dict[int, Version] = {}
        for number in policy.candidates(found):
            if sum(version.state is State.READY for version in versions.values()) == policy.most:
                break
            versions[number] = _existing(found, root, name, number)
            self._load_one(versions[number])
        return versions

    def _like(self, root: Path | None, name: str, number: int, known: Known) -> Version:
        """A version as another process knows it."""
        path = _file(root or self.roots[0], name, number)
        if known.state is not State.READY:
            return Version(name, number, path, known.state, task=known.task, error=known.error)
        found = scan_model(root, name) if root is not None else {}
        version = _existing(found, path.parents[2], name, number)
        self._load_one(version)
        return version

    def load(self, name: str) -> None:
        """Load a model as it is on disk now, in place of what is loaded under its name.

        Raises ServiceError UNKNOWN_MODEL, or BAD_MODEL if any version cannot be loaded; nothing has changed then.
        """
        with self._changing:
            self.commit(name, self.prepare(name))

    def prepare(self, name: str) -> dict[int, Version]:
        """Load a model's versions beside those that answer; the first half of `load`, which raises what that does."""
        root = scan(self.roots).get(name)
        if root is None:
            raise ServiceError(Problem.UNKNOWN_MODEL, f"There is no model {_short(name)!r} in the repository.")
        versions, serving = self._wanted(root, name), self._models.get(name, {})
        for number, version in versions.items():
            current = serving.get(number)
            if current is not None and _is_loaded_already(version, current):
                versions[number] = current
                continue
            self._load_one(version)
            if version.state is not State.READY:
                raise ServiceError(Problem.BAD_MODEL, f"Version {version.version}: {version.error}")
        return versions

    def commit(self, name: str, versions: dict[int, Version]) -> None:
        """Let prepared versions answer from now on; the second half of `load`."""
        self._models = {**self._models, name: versions}

    def unload(self, name: str) -> None:
        """Answer no further requests with a model; those in progress are. Raises ServiceError UNKNOWN_MODEL."""
        with self._changing:
            gone = {
                v.version: Version(name, v.version, v.path, State.UNLOADED, task=v.task) for v in self.versions(name)
            }
            self._models = {**self._models, name: gone}
        logger.info("model unloaded", extra={"model": name})

    def _load_one(self, version: Version) -> None:
        if version.state is not State.FOUND:
            return
        begun = time.monotonic()
        try:
            version.identity = _identity(version.path)
            session = self._load(version.path)
            spec = session.file.header.input
            session.run(np.zeros((1, spec.height, spec.width, 3), np.uint8))
        except Exception as error:  # whatever it is, the other models serve
            version.task = _claimed_task(version.path)
            version.fail(_reason(error, version.path))
            return
        version.session, version.task = session, session.file.header.task
        version.state, version.load_s = State.READY, time.monotonic() - begun
        logger.info(
            "model ready",
            extra={
                "model": version.name,
                "version": version.version,
                "isa": session.isa,
                "duration_ms": round(version.load_s * 1000, 1),
            },
        )

    @property
    def default(self) -> str | None:
        """The model that answers where none is named: the configured one, or the first that is ready."""
        if self._default is not None:
            return self._default
        return next((version.name for version in self if version.state is State.READY), None)

    def default_for(self, task: str) -> str:
        """The model that answers requests of a task where none is named: the default, unless it does another.

        Then it is the first ready one, also where nobody knows what the default does. Raises ServiceError UNKNOWN_MODEL
        if no model does that, or MODEL_UNAVAILABLE if none is ready at all.
        """
        name = self.default
        if name is None:
            raise _nothing_ready()
        its_task = self.find(name).task
        if its_task == task:
            return name
        first = next((v.name for v in self if v.state is State.READY and v.task == task), None)
        if first is not None:
            return first
        if its_task is None:
            return name
        raise ServiceError(Problem.UNKNOWN_MODEL, f"No model for {task} is loaded.")

    def versions(self, name: str) -> list[Version]:
        """The versions of a model that serve or should, lowest first. Raises ServiceError UNKNOWN_MODEL."""
        found = self._models.get(name)
        if not found:
            raise ServiceError(Problem.UNKNOWN_MODEL, f"There is no model {_short(name)!r}.")
        return [found[number] for number in sorted(found)]

    def find(self, name: str | None = None, version: str | None = None) -> Version:
        """The version that a request means. Without a number: the highest ready one, else the highest.

        Raises ServiceError UNKNOWN_MODEL, or MODEL_UNAVAILABLE where there is no model at all.
        """
        name = self.default if name is None else name
        if name is None:
            raise _nothing_ready()
        versions = self.versions(name)
        if version is None:
            return next((v for v in reversed(versions) if v.state is State.READY), versions[-1])
        for candidate in versions:
            if str(candidate.version) == version:
                return candidate
        serving = ", ".join(str(candidate.version) for candidate in versions)
        detail = f"Model {name!r} does not serve a version {_short(version)!r}; it serves {serving}."
        raise ServiceError(Problem.UNKNOWN_MODEL, detail)

    @property
    def ready(self) -> bool:
        """Whether a request that names no model can be answered."""
        try:
            return self.find().state is State.READY
        except ServiceError:
            return False


def _nothing_ready() -> ServiceError:
    return ServiceError(Problem.MODEL_UNAVAILABLE, "No model is ready.", retry_after_s=30)


def scan(roots: Sequence[Path]) -> dict[str, Path]:
    """Names of models and the root that each belongs to."""
    found: dict[str, Path] = {}
    for root in roots:
        try:
            folders = sorted(root.iterdir())
        except OSError as error:
            reason = error.strerror or type(error).__name__
            logger.warning("model repository cannot be read", extra={"path": str(root), "reason": reason})
            continue
        for folder in folders:
            if not _NAME.fullmatch(folder.name) or not any(_version_folders(folder)):
                continue
            if folder.name in found:
                logger.warning("model is hidden by an earlier root", extra={"model": folder.name, "path": str(folder)})
            found.setdefault(folder.name, root)
    return found


def scan_model(root: Path, name: str) -> dict[int, Version]:
    """The versions of one model; those that lead out of the root are marked as failed."""
    versions: dict[int, Version] = {}
    inside = root.resolve()
    for folder in _version_folders(root / name):
        version = Version(name, int(folder.name), folder / MODEL_FILE)
        if not version.path.resolve().is_relative_to(inside):
            version.fail("the path leads out of the repository")
        versions[version.version] = version
    return versions


def _file(root: Path, name: str, number: int) -> Path:
    return root / name / str(number) / MODEL_FILE


def _existing(found: Mapping[int, Version], root: Path, name: str, number: int) -> Version:
    """A version that was found, or one that failed because it is not there."""
    version = found.get(number)
    if version is None:
        version = Version(name, number, _file(root, name, number))
        version.fail("there is no such version in the repository")
    return version


def _identity(path: Path) -> tuple[int, ...]:
    """Which file lies at a path now; one that was replaced or written to is another. Raises OSError."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _is_loaded_already(version: Version, current: Version) -> bool:
    """Whether what serves was loaded from the file that a version would be loaded from."""
    if version.state is not State.FOUND or current.session is None:
        return False
    try:
        return current.path == version.path and current.identity == _identity(version.path)
    except OSError:
        return False


def _version_folders(folder: Path) -> Iterator[Path]:
    """Folders of versions with a file, or with what cannot be looked at: that fails when it is loaded."""
    try:
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError:
        return
    for entry in entries:
        if not VERSION.fullmatch(entry.name):
            continue
        try:
            there = (entry / MODEL_FILE).is_file()
        except OSError:
            there = True
        if there:
            yield entry


def _claimed_task(path: Path) -> str | None:
    """The task that the header of a file that did not load names, if that much of it can be read."""
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(header_bytes, MAX_HEADER_BYTES)))
        task = json.loads(header["__metadata__"]["model"])["task"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return task if task in ("classification", "pose") else None


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, PackedFileError):
        return error.problem
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).replace(str(path), MODEL_FILE) or type(error).__name__


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:80] + "..."
