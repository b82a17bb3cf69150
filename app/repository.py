"""The models on disk: `<root>/<name>/<version>/model.safetensors`.

Roots are searched in order; a name belongs to the first root that has it. Versions are whole numbers and the highest
that loaded answers where a request names none. Whatever a root contains, nothing outside it is opened: a link that
leads out is refused. A model that does not load is reported with its reason, and the others serve.

Models are loaded anew while they serve: all versions of a name are read and warmed beside the old ones and then take
their place at once, or nothing changes. A `Version` that requests have seen is never changed, so that each
request is answered by the session it began with. Files should be replaced by renaming, never be written in place.
"""

from __future__ import annotations

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
from models.packing.file import PackedFile, PackedFileError

MODEL_FILE = "model.safetensors"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")

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
    task : what it does; None until it was loaded, kept when it is unloaded.
    error : why it cannot serve, while `state` is FAILED; names no folder, as clients may read it.
    load_s : seconds that loading and warming took.
    """

    name: str
    version: int
    path: Path
    state: State = State.FOUND
    session: Session | None = None
    task: str | None = None
    error: str | None = None
    load_s: float = 0.0

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


class Repository:
    """The models of several roots, loaded by `load` (a function from a packed file's path to a session)."""

    def __init__(self, roots: Sequence[Path], load: Callable[[Path], Session], default: str | None = None) -> None:
        self.roots = tuple(roots)
        self._load = load
        self._default = default
        self._changing = threading.Lock()
        self._models = {name: scan_model(root, name) for name, root in scan(self.roots).items()}

    def __iter__(self) -> Iterator[Version]:
        """Every version of every model, by name and number."""
        return (versions[number] for _, versions in sorted(self._models.items()) for number in sorted(versions))

    @property
    def names(self) -> list[str]:
        """The names of all models, sorted."""
        return sorted(self._models)

    def load_all(self) -> None:
        """Load and warm every version; a failure is recorded, not raised."""
        for version in self:
            if version.state is State.FOUND:
                self._load_one(version)

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
        versions = scan_model(root, name)
        for version in versions.values():
            if version.state is State.FOUND:
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
        begun = time.monotonic()
        try:
            session = self._load(version.path)
            spec = session.file.header.input
            session.run(np.zeros((1, spec.height, spec.width, 3), np.uint8))
        except (PackedFileError, OSError, ValueError, RuntimeError, MemoryError) as error:
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
        """The model that answers requests of a task where none is named: the default, or the first ready one.

        Raises ServiceError UNKNOWN_MODEL if no model does that, or MODEL_UNAVAILABLE if none is ready at all.
        """
        name = self.default
        if name is None:
            raise _nothing_ready()
        if self.find(name).task in (task, None):
            return name
        first = next((v.name for v in self if v.state is State.READY and v.task == task), None)
        if first is None:
            raise ServiceError(Problem.UNKNOWN_MODEL, f"No model for {task} is loaded.")
        return first

    def versions(self, name: str) -> list[Version]:
        """All versions of a model, lowest first. Raises ServiceError UNKNOWN_MODEL."""
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
        raise ServiceError(Problem.UNKNOWN_MODEL, f"Model {name!r} has no version {_short(version)!r}.")

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
        if not root.is_dir():
            logger.warning("model repository is not a folder", extra={"path": str(root)})
            continue
        for folder in sorted(root.iterdir()):
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


def _version_folders(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError:
        return iter(())
    return (entry for entry in entries if _VERSION.fullmatch(entry.name) and (entry / MODEL_FILE).is_file())


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, PackedFileError):
        return error.problem
    return str(error).replace(str(path), MODEL_FILE) or type(error).__name__


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:80] + "..."
