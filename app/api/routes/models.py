"""GET /v1/models: which models there are, and the card of each."""

from __future__ import annotations

from fastapi import APIRouter

from app.api.deps import ServiceDep
from app.api.documentation import problems
from app.api.schemas import MacsOut, ModelCard, ModelList, ModelSummary, SizesOut, VersionOut
from app.errors import Problem
from app.repository import Repository, Session
from models.packing.file import PackedFile
from models.packing.graph import BinaryConv2d

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", summary="List the models", responses=problems())
async def list_models(service: ServiceDep) -> ModelList:
    """Every model with its versions and their states."""
    repository = service.repository
    return ModelList(models=[_summary(repository, name) for name in repository.names], default=repository.default)


@router.get("/{name}", summary="Describe a model", responses=problems(Problem.UNKNOWN_MODEL))
async def describe_model(name: str, service: ServiceDep, version: str | None = None) -> ModelCard:
    """Task, labels or keypoints, input, sizes, operations, provenance and versions of one model."""
    found = service.repository.find(name, version)
    summary = _summary(service.repository, name).model_dump() | {"version": str(found.version), "state": found.state}
    if found.session is None:
        return ModelCard(**summary)
    header = found.session.file.header
    return ModelCard(
        **summary,
        architecture=header.architecture,
        input=header.input,
        labels=header.labels,
        keypoints=header.keypoints,
        sizes=_sizes(found.session),
        macs=_macs(found.session.file),
        provenance=header.provenance,
    )


def _summary(repository: Repository, name: str) -> ModelSummary:
    current = repository.find(name)
    versions = [VersionOut(version=str(v.version), state=v.state, error=v.error) for v in repository.versions(name)]
    task = current.session.file.header.task if current.session is not None else None
    return ModelSummary(name=name, version=str(current.version), state=current.state, task=task, versions=versions)


def _sizes(session: Session) -> SizesOut:
    stored = session.file.header.sizes
    return SizesOut(
        packed_bytes=stored.packed_bytes,
        float32_bytes=stored.float32_bytes,
        ratio=round(stored.float32_bytes / max(1, stored.packed_bytes), 2),
        file_bytes=session.file.file_bytes,
        resident_bytes=session.resident_bytes,
        arena_bytes=session.arena_bytes,
    )


def _macs(file: PackedFile) -> MacsOut:
    binary = real = 0
    for op in file.header.graph.ops:
        count = op.macs(file.values)
        if isinstance(op, BinaryConv2d):
            binary += count
        else:
            real += count
    return MacsOut(binary=binary, real=real)
