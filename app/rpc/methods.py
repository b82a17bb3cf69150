"""The methods of `inference.GRPCInferenceService`: those of the protocol, and of the extensions that REST has too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from app.api import answers_v2
from app.api.schemas import Answer
from app.errors import Problem, ServiceError
from app.fleet import Fleet
from app.keys import Role
from app.lifecycle import Lifecycle
from app.repository import State, Version
from app.rpc import codec
from app.rpc import open_inference_pb2 as pb
from app.service import Service
from app.trace import Trace

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes
    ----------
    request : the message that it takes.
    answer : gives the message that it answers; raises ServiceError.
    role : whose key it takes; nobody's for what those ask who watch the service, which is answered while it drains too.
    computes : whether its calls take places in the queue.
    """

    request: type[Message]
    answer: Callable[[Any, Trace], Awaitable[Message]]
    role: Role = Role.CLIENT
    computes: bool = False


class Methods:
    """What each method does, over the data plane that all protocols share."""

    def __init__(self, service: Service, fleet: Fleet, lifecycle: Lifecycle) -> None:
        self._service = service
        self._fleet = fleet
        self._lifecycle = lifecycle

    def table(self) -> dict[str, Method]:
        """All methods by name."""
        return {
            "ServerLive": Method(pb.ServerLiveRequest, self.server_live, Role.NOBODY),
            "ServerReady": Method(pb.ServerReadyRequest, self.server_ready, Role.NOBODY),
            "ServerMetadata": Method(pb.ServerMetadataRequest, self.server_metadata),
            "ModelReady": Method(pb.ModelReadyRequest, self.model_ready),
            "ModelMetadata": Method(pb.ModelMetadataRequest, self.model_metadata),
            "ModelConfig": Method(pb.ModelConfigRequest, self.model_config),
            "ModelStatistics": Method(pb.ModelStatisticsRequest, self.model_statistics),
            "ModelInfer": Method(pb.ModelInferRequest, self.model_infer, computes=True),
            "RepositoryIndex": Method(pb.RepositoryIndexRequest, self.repository_index),
            "RepositoryModelLoad": Method(pb.RepositoryModelLoadRequest, self.load, Role.ADMIN),
            "RepositoryModelUnload": Method(pb.RepositoryModelUnloadRequest, self.unload, Role.ADMIN),
        }

    async def server_live(self, _: pb.ServerLiveRequest, __: Trace) -> pb.ServerLiveResponse:
        """True for as long as the process answers at all."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, _: pb.ServerReadyRequest, __: Trace) -> pb.ServerReadyResponse:
        """Whether /readyz says yes."""
        return pb.ServerReadyResponse(ready=self._service.repository.ready and not self._lifecycle.draining)

    async def server_metadata(self, _: pb.ServerMetadataRequest, __: Trace) -> pb.ServerMetadataResponse:
        """Name, version and the extensions that are implemented."""
        return _message(answers_v2.server_metadata(), pb.ServerMetadataResponse)

    async def model_ready(self, request: pb.ModelReadyRequest, trace: Trace) -> pb.ModelReadyResponse:
        """Whether a model can answer; one that is not there cannot."""
        try:
            ready = self._find(request.name, request.version, trace).state is State.READY
        except ServiceError:
            ready = False
        return pb.ModelReadyResponse(ready=ready)

    async def model_metadata(self, request: pb.ModelMetadataRequest, trace: Trace) -> pb.ModelMetadataResponse:
        """A model's input and outputs."""
        version = self._find(request.name, request.version, trace)
        return _message(answers_v2.model_metadata(version, self._service), pb.ModelMetadataResponse)

    async def model_config(self, request: pb.ModelConfigRequest, trace: Trace) -> pb.ModelConfigResponse:
        """The batch limit, and the layout of the input."""
        version = self._find(request.name, request.version, trace)
        return pb.ModelConfigResponse(config=_message(answers_v2.model_config(version, self._service), pb.ModelConfig))

    async def model_statistics(self, request: pb.ModelStatisticsRequest, trace: Trace) -> pb.ModelStatisticsResponse:
        """What a version, every version of a model, or every model has answered, by whatever protocol."""
        repository = self._service.repository
        versions = list(repository) if not request.name else repository.versions(request.name)
        if request.name and request.version:
            versions = [self._find(request.name, request.version, trace)]
        return _message(answers_v2.stats(await self._fleet.statistics(), versions), pb.ModelStatisticsResponse)

    async def model_infer(self, request: pb.ModelInferRequest, trace: Trace) -> pb.ModelInferResponse:
        """All outputs of a batch of pixels (UINT8, FP32) or encoded pictures (BYTES), or their best classes."""
        version = self._find(request.model_name, request.model_version, trace)
        session = version.ready_session()
        call = codec.parse(request, session.file, self._service.max_batch_images)
        trace.answer_within(call.timeout_s)
        del request  # the pictures are in the call; the message would hold them a second time
        outputs = await self._service.infer(call.images, version, session, trace)
        return codec.encode(call, version.name, str(version.version), outputs, session.file.header.labels)

    async def repository_index(self, request: pb.RepositoryIndexRequest, _: Trace) -> pb.RepositoryIndexResponse:
        """Every version and whether it can be asked."""
        _the_only_repository(request.repository_name)
        entries = answers_v2.index(self._service.repository, request.ready)
        return pb.RepositoryIndexResponse(
            models=[_message(entry, pb.RepositoryIndexResponse.ModelIndex) for entry in entries]
        )

    async def load(self, request: pb.RepositoryModelLoadRequest, _: Trace) -> pb.RepositoryModelLoadResponse:
        """Read every version of a model from disk; together they take the place of what was loaded."""
        _the_only_repository(request.repository_name)
        answers_v2.refuse_configuration(request.parameters)
        await self._fleet.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def unload(self, request: pb.RepositoryModelUnloadRequest, _: Trace) -> pb.RepositoryModelUnloadResponse:
        """Answer no further requests with a model until it is loaded again."""
        _the_only_repository(request.repository_name)
        await self._fleet.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    def _find(self, name: str, version: str, trace: Trace) -> Version:
        found = self._service.repository.find(name, version or None)
        trace.model, trace.version = found.name, str(found.version)
        return found


def _the_only_repository(name: str) -> None:
    if name:
        raise ServiceError(Problem.BAD_REQUEST, "There is one repository; repository_name has to be empty.")


def _message(answer: Answer, kind: type[M]) -> M:
    """An answer of REST as the message with the same fields."""
    return ParseDict(answer.model_dump(exclude_none=True), kind())
