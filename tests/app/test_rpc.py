"""The Open Inference Protocol V2 over gRPC, spoken by the stock clients of Triton to the running service."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import tritonclient.http as triton_http
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict
from PIL import Image
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from app.errors import Problem
from app.rpc import open_inference_pb2
from app.rpc.calls import peer_address
from app.rpc.methods import Methods
from app.rpc.statuses import code_of
from models.xnor import Session
from tests.helpers import pictures
from tests.helpers.packed import LABELS
from tests.helpers.rpc import METHOD
from tests.helpers.server import Server, eventually, free_port
from tests.helpers.triton import EXTENSION_CALLS

PIXELS = np.stack([pictures.random_pixels(32, 32, seed) for seed in range(8)])
PNGS = [pictures.encoded(Image.fromarray(pixels), "PNG") for pixels in PIXELS]
REST_ROUTES = "/v2/models/{name}"


@pytest.fixture(scope="module")
def logits(zoo: Path) -> np.ndarray:
    """What the newest `random` model says of PIXELS, straight from the engine."""
    return Session.load(zoo / "random" / "2" / "model.safetensors").run(PIXELS)["logits"]


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def service(zoo: Path, port: int) -> Iterator[Server]:
    running = Server(
        zoo,
        grpc_port=port,
        default_model="random",
        max_body_bytes=4 << 20,
        admin_keys="root",
        version_policy="all",
        version_policies='{"dots": "specific:1", "colour": "latest:2"}',
    )
    yield running
    running.close()


@pytest.fixture(scope="module")
def client(service: Server, port: int) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(service: Server, port: int) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def pixel_input(pixels: np.ndarray, kind: Any = triton) -> Any:
    return kind.InferInput("image", list(pixels.shape), "UINT8").set_data_from_numpy(pixels)


def encoded_input(files: list[bytes], shape: list[int] | None = None, kind: Any = triton) -> Any:
    shape = shape or [len(files)]
    return kind.InferInput("image", shape, "BYTES").set_data_from_numpy(np.array(files, np.object_).reshape(shape))


# ---- the messages ----------------------------------------------------------------------------------------------------


def fields_of(message: Descriptor) -> dict[str, tuple[Any, ...]]:
    def described(field: FieldDescriptor) -> tuple[Any, ...]:
        kind = field.message_type or field.enum_type
        oneof = field.containing_oneof.name if field.containing_oneof else None
        return field.number, field.type, field.is_repeated, kind.name if kind else None, oneof

    return {field.name: described(field) for field in message.fields}


def messages_of(*files: Any) -> dict[str, Descriptor]:
    """Every message by its name without the package, nested ones too."""
    found: dict[str, Descriptor] = {}

    def note(message: Descriptor, prefix: str) -> None:
        found[prefix + message.name] = message
        for nested in message.nested_types:
            note(nested, f"{prefix}{message.name}.")

    for file in files:
        for message in file.DESCRIPTOR.message_types_by_name.values():
            note(message, "")
    return found


def test_messages_are_those_of_the_public_protocol() -> None:
    public = messages_of(service_pb2, model_config_pb2)
    ours = messages_of(open_inference_pb2)
    assert len(ours) > 40
    for name, message in ours.items():
        wanted = fields_of(public[name])
        for field, described in fields_of(message).items():
            assert described == wanted[field], f"{name}.{field}"
    for ours_of, public_of in (
        (open_inference_pb2.DataType, model_config_pb2.DataType),
        (open_inference_pb2.ModelInput.Format, model_config_pb2.ModelInput.Format),
    ):
        assert set(ours_of.items()) <= set(public_of.items())


def test_the_compiled_messages_are_those_of_the_file() -> None:
    """`make proto` has been run: the same names with the same numbers, in the same order."""
    text = Path(open_inference_pb2.__file__).with_name("open_inference.proto").read_text()
    written = re.findall(r"^ *[^/\n]*?(\w+) = (\d+);", text, re.MULTILINE)
    ours = messages_of(open_inference_pb2).values()
    fields = [(field.name, field.number) for message in ours for field in message.fields]
    fields = [entry for entry in fields if entry not in (("key", 1), ("value", 2))]
    enums = [*open_inference_pb2.DataType.items(), *open_inference_pb2.ModelInput.Format.items()]
    assert Counter((name, int(number)) for name, number in written) == Counter([*fields, *enums])


def test_methods_take_and_give_the_messages_of_the_public_service() -> None:
    public = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    assert f"/{service_pb2.DESCRIPTOR.services_by_name['GRPCInferenceService'].full_name}/" == METHOD
    for name, method in Methods(None, None, None).table().items():  # type: ignore[arg-type]
        assert method.request.DESCRIPTOR.name == public[name].input_type.name
        assert f"-> pb.{public[name].output_type.name}" in f"-> {method.answer.__annotations__['return']}"


def test_every_problem_has_its_status() -> None:
    codes = {problem: code_of(problem) for problem in Problem}
    assert grpc.StatusCode.OK not in codes.values()
    for problem, code in codes.items():
        assert (problem.status == 500) == (code is grpc.StatusCode.INTERNAL)
        assert (problem.status == 504) <= (code is grpc.StatusCode.DEADLINE_EXCEEDED)


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:40000", "127.0.0.1"),
        ("ipv6:%5B2001:db8::1%5D:40000", "2001:db8::1"),
        ("ipv6:[::1]:40000", "::1"),
        ("unix:/tmp/socket", None),
        ("", None),
    ],
)
def test_addresses_of_peers(peer: str, address: str | None) -> None:
    assert peer_address(peer) == address


# ---- what it answers -------------------------------------------------------------------------------------------------


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("random")
    assert client.is_model_ready("random", "1")
    assert not client.is_model_ready("random", "7")
    assert not client.is_model_ready("nobody")
    server = client.get_server_metadata()
    assert server.name == "signet"
    assert server.version
    assert client.get_model_metadata("random", "1", as_json=True) == {
        "name": "random",
        "versions": ["1", "2"],
        "platform": "signet",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": ["-1", "32", "32", "3"]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": ["-1", "10"]}],
    }


@pytest.mark.parametrize("extension", EXTENSION_CALLS)
def test_an_extension_is_advertised_exactly_if_it_works(
    client: triton.InferenceServerClient, service: Server, extension: str
) -> None:
    if extension in client.get_server_metadata().extensions:
        EXTENSION_CALLS[extension](client)
        return
    before = service.metric("signet_requests_total", route="unmatched")
    with pytest.raises(InferenceServerException, match="no such method") as raised:
        EXTENSION_CALLS[extension](client)
    assert raised.value.status() == "StatusCode.UNIMPLEMENTED"
    eventually(lambda: service.metric("signet_requests_total", route="unmatched") == before + 1)


def test_a_stream_of_requests_is_not_implemented(client: triton.InferenceServerClient) -> None:
    told = threading.Event()
    errors: list[InferenceServerException] = []

    def hear(result: None, error: InferenceServerException) -> None:
        errors.append(error)
        told.set()

    client.start_stream(hear)
    try:
        with contextlib.suppress(InferenceServerException):  # it may have heard already
            client.async_stream_infer("random", [pixel_input(PIXELS[:1])])
        assert told.wait(60)
    finally:
        client.stop_stream()
    assert errors[0].status() == "StatusCode.UNIMPLEMENTED"


def test_the_flow_of_nvidias_image_client(client: triton.InferenceServerClient, logits: np.ndarray) -> None:
    """Metadata, configuration, one batch, and `score:index:label`, with the checks that image_client.py makes."""
    metadata, config = client.get_model_metadata("random"), client.get_model_config("random").config
    assert len(metadata.inputs) == len(metadata.outputs) == 1
    assert len(config.input) == 1
    assert metadata.outputs[0].datatype == "FP32"
    assert config.max_batch_size > 0
    assert sum(side > 1 for side in metadata.outputs[0].shape[1:]) == 1
    assert config.input[0].format == model_config_pb2.ModelInput.FORMAT_NHWC
    _, height, width, channels = metadata.inputs[0].shape
    assert list(config.input[0].dims) == [height, width, channels]
    assert config.input[0].data_type == model_config_pb2.TYPE_UINT8
    assert config.output[0].data_type == model_config_pb2.TYPE_FP32
    assert list(config.output[0].dims) == [10]

    batch = PIXELS[:3]
    assert batch.shape[1:] == (height, width, channels)
    tensor = triton.InferInput(metadata.inputs[0].name, list(batch.shape), metadata.inputs[0].datatype)
    tensor.set_data_from_numpy(batch)
    wanted = triton.InferRequestedOutput(metadata.outputs[0].name, class_count=3)
    answer = client.infer("random", [tensor], request_id="7", model_version="", outputs=[wanted])
    assert answer.get_response().id == "7"
    assert answer.get_response().model_version == "2"
    rows = answer.as_numpy("logits")
    assert rows.shape == (3, 3)
    for row, expected in zip(rows, logits, strict=False):
        for text, index in zip(row, np.argsort(-expected)[:3], strict=True):
            score, number, label = "".join(chr(letter) for letter in text).split(":")
            assert float(score) == pytest.approx(expected[index], abs=1e-5)
            assert (int(number), label) == (index, LABELS[index])


@pytest.mark.parametrize("shape", [[8], [8, 1]])
def test_pixels_and_encoded_pictures_in_and_logits_out(
    client: triton.InferenceServerClient, logits: np.ndarray, shape: list[int]
) -> None:
    found = client.infer("random", [pixel_input(PIXELS)]).as_numpy("logits")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, logits)
    np.testing.assert_array_equal(client.infer("random", [encoded_input(PNGS, shape)]).as_numpy("logits"), logits)


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compressed_requests(client: triton.InferenceServerClient, logits: np.ndarray, compression: str) -> None:
    answer = client.infer("random", [pixel_input(PIXELS)], compression_algorithm=compression)
    np.testing.assert_array_equal(answer.as_numpy("logits"), logits)


def test_results_are_those_of_rest_bit_for_bit(client: triton.InferenceServerClient, service: Server) -> None:
    photos = [pictures.jpeg(375, 500), pictures.jpeg(90, 70), PNGS[0]]
    with triton_http.InferenceServerClient(f"127.0.0.1:{service.port}") as rest:
        for model, output, classes in (("random", "logits", 4), ("colour", "logits", 2), ("dots", "heatmaps", 0)):
            ours = client.infer(model, [encoded_input(photos)]).as_numpy(output)
            theirs = rest.infer(model, [encoded_input(photos, kind=triton_http)]).as_numpy(output)
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
            if not classes:
                continue
            wanted = [triton.InferRequestedOutput(output, class_count=classes)]
            ours = client.infer(model, [encoded_input(photos)], outputs=wanted).as_numpy(output)
            wanted = [triton_http.InferRequestedOutput(output, class_count=classes)]
            theirs = rest.infer(model, [encoded_input(photos, kind=triton_http)], outputs=wanted).as_numpy(output)
            np.testing.assert_array_equal(ours, theirs)
            told = service.classify(photos[0], model=model, top_k=classes).json()["predictions"]
            assert [int(text.decode().split(":")[1]) for text in ours[0]] == [entry["index"] for entry in told]


def test_metadata_are_those_of_rest(client: triton.InferenceServerClient, service: Server) -> None:
    def told(path: str) -> Any:
        return service.client.get(path).json()

    def as_json(message: Any) -> Any:
        """With numbers as numbers, as REST has them, and with what is 0 or empty."""
        found = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        return json.loads(json.dumps(found), object_hook=_numbers)

    assert as_json(client.get_model_metadata("dots")) == told("/v2/models/dots")
    ours, theirs = as_json(client.get_model_config("dots").config), told("/v2/models/dots/config")
    assert {key: ours[key] for key in theirs if key not in ("input", "output")} == {
        key: value for key, value in theirs.items() if key not in ("input", "output")
    }
    for side in ("input", "output"):
        assert [
            {key: entry[key] for key in wanted} for entry, wanted in zip(ours[side], theirs[side], strict=True)
        ] == (theirs[side])
    for model, policy in (("random", {"all": {}}), ("dots", {"specific": {"versions": [1]}})):
        assert as_json(client.get_model_config(model).config)["version_policy"] == policy
        assert told(f"/v2/models/{model}/config")["version_policy"] == policy
    extensions = set(told("/v2")["extensions"])
    assert set(client.get_server_metadata().extensions) == extensions - {"binary_tensor_data"}
    index = service.client.post("/v2/repository/index").json()
    assert as_json(client.get_model_repository_index())["models"] == index


def _numbers(found: dict[str, Any]) -> dict[str, Any]:
    def number(value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.lstrip("-").isdecimal() else value

    texts = {"version", "string_value"} | ({"versions"} if "name" in found else set())
    return {
        key: value if key in texts else [number(each) for each in value] if isinstance(value, list) else number(value)
        for key, value in found.items()
    }


def test_statistics_are_those_of_all_protocols(client: triton.InferenceServerClient, service: Server) -> None:
    before = client.get_inference_statistics("colour", "1").model_stats[0]
    service.classify(PNGS[0], model="colour")
    client.infer("colour", [pixel_input(PIXELS[:3])])
    with pytest.raises(InferenceServerException):
        client.infer("colour", [encoded_input([b"no picture"])])
    after = client.get_inference_statistics("colour", "1").model_stats[0]
    assert after.inference_count - before.inference_count == 4
    assert after.execution_count - before.execution_count == 2
    assert after.last_inference > 1_600_000_000_000
    for outcome, count in (("success", 2), ("fail", 1), ("compute_infer", 2)):
        then, now = getattr(before.inference_stats, outcome), getattr(after.inference_stats, outcome)
        assert now.count - then.count == count
        assert now.ns > then.ns
    assert 3 in {entry.batch_size for entry in after.batch_stats}
    assert service.client.get("/v2/models/colour/stats").json()["model_stats"][0]["inference_count"] == (
        after.inference_count
    )
    every = [(entry.name, entry.version) for entry in client.get_inference_statistics().model_stats]
    assert every == [("colour", "1"), ("dots", "1"), ("random", "1"), ("random", "2")]
    assert len(client.get_inference_statistics("random").model_stats) == 2


def normalised(count: int) -> np.ndarray:
    """The first of PIXELS as the `random` model normalises them."""
    mean, std = np.array([0.49, 0.48, 0.45], np.float32), np.array([0.25, 0.24, 0.26], np.float32)
    return ((PIXELS[:count].astype(np.float32) / 255 - mean) / std).astype(np.float32)


@pytest.mark.parametrize("channels_first", [False, True])
def test_normalised_pixels(client: triton.InferenceServerClient, logits: np.ndarray, channels_first: bool) -> None:
    values = normalised(8)
    values = np.ascontiguousarray(values.transpose(0, 3, 1, 2)) if channels_first else values
    tensor = triton.InferInput("image", list(values.shape), "FP32").set_data_from_numpy(values)
    np.testing.assert_array_equal(client.infer("random", [tensor]).as_numpy("logits"), logits)


def test_versions_are_addressed(client: triton.InferenceServerClient, zoo: Path) -> None:
    first = Session.load(zoo / "random" / "1" / "model.safetensors").run(PIXELS[:1])["logits"]
    answer = client.infer("random", [pixel_input(PIXELS[:1])], model_version="1")
    assert answer.get_response().model_version == "1"
    np.testing.assert_array_equal(answer.as_numpy("logits"), first)


def test_numbers_and_byte_strings_instead_of_raw_contents(
    stub: service_pb2_grpc.GRPCInferenceServiceStub, logits: np.ndarray
) -> None:
    def ask(datatype: str, shape: list[int], **contents: Any) -> np.ndarray:
        request = service_pb2.ModelInferRequest(model_name="random")
        request.inputs.add(name="image", datatype=datatype, shape=shape, contents=contents)
        answer = stub.ModelInfer(request)
        assert [(output.name, output.datatype) for output in answer.outputs] == [("logits", "FP32")]
        return np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(answer.outputs[0].shape)

    np.testing.assert_array_equal(ask("UINT8", [2, 32, 32, 3], uint_contents=PIXELS[:2].ravel().tolist()), logits[:2])
    np.testing.assert_array_equal(ask("FP32", [2, 32, 32, 3], fp32_contents=normalised(2).ravel().tolist()), logits[:2])
    np.testing.assert_array_equal(ask("BYTES", [3], bytes_contents=PNGS[:3]), logits[:3])


def test_the_asyncio_client(service: Server, port: int, logits: np.ndarray) -> None:
    async def talk() -> None:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{port}") as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("random")
            assert (await client.get_server_metadata()).name == "signet"
            assert (await client.get_model_metadata("random")).name == "random"
            assert (await client.get_model_config("random")).config.max_batch_size > 0
            assert len((await client.get_model_repository_index()).models) == 4
            assert (await client.get_inference_statistics("random")).model_stats
            answers = await asyncio.gather(
                *(client.infer("random", [pixel_input(PIXELS[index : index + 1])]) for index in range(8)),
                client.infer("random", [encoded_input(PNGS * 4)], compression_algorithm="gzip"),
            )
            for index in range(8):
                np.testing.assert_array_equal(answers[index].as_numpy("logits"), logits[index : index + 1])
            np.testing.assert_array_equal(answers[8].as_numpy("logits"), np.concatenate([logits] * 4))
            with pytest.raises(InferenceServerException, match="no model 'nobody'"):
                await client.infer("nobody", [pixel_input(PIXELS[:1])])

    asyncio.run(talk())


def test_answers_of_many_clients_do_not_mix(service: Server, port: int, logits: np.ndarray) -> None:
    def ask(seed: int) -> None:
        chosen = np.random.default_rng(seed).integers(0, len(PIXELS), 1 + seed % 7)
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            tensor = pixel_input(PIXELS[chosen]) if seed % 2 else encoded_input([PNGS[index] for index in chosen])
            np.testing.assert_array_equal(client.infer("random", [tensor]).as_numpy("logits"), logits[chosen])

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(ask, range(32)))


def test_callbacks_of_the_plain_client_get_their_own_answers(
    client: triton.InferenceServerClient, logits: np.ndarray
) -> None:
    answers: dict[int, Any] = {}
    done = threading.Semaphore(0)

    def hear(index: int) -> Callable[[Any, Any], None]:
        def note(result: Any, error: Any) -> None:
            answers[index] = error or result.as_numpy("logits")
            done.release()

        return note

    for index in range(8):
        client.async_infer("random", [pixel_input(PIXELS[index : index + 1])], hear(index))
    for _ in range(8):
        assert done.acquire(timeout=60)
    for index in range(8):
        np.testing.assert_array_equal(answers[index], logits[index : index + 1])


def test_models_are_loaded_and_unloaded_with_an_admin_key(
    client: triton.InferenceServerClient, service: Server
) -> None:
    for call in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="admin key") as raised:
            call("colour")
        assert raised.value.status() == "StatusCode.PERMISSION_DENIED"
    admin = {"x-api-key": "root"}
    client.unload_model("colour", headers=admin)
    assert not client.is_model_ready("colour")
    states = {entry.name: entry.state for entry in client.get_model_repository_index().models}
    assert states["colour"] == "UNAVAILABLE"
    with pytest.raises(InferenceServerException, match="is unloaded") as raised:
        client.infer("colour", [pixel_input(PIXELS[:1])])
    assert raised.value.status() == "StatusCode.UNAVAILABLE"
    assert service.classify(PNGS[0], model="colour").status_code == 503
    with pytest.raises(InferenceServerException, match="not taken") as raised:
        client.load_model("colour", headers=admin, config="{}")
    assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"
    client.load_model("colour", headers={"authorization": "Bearer root"})
    assert client.is_model_ready("colour")
    with pytest.raises(InferenceServerException, match="no model 'nobody'") as raised:
        client.load_model("nobody", headers=admin)
    assert raised.value.status() == "StatusCode.NOT_FOUND"


# ---- what it does not answer -----------------------------------------------------------------------------------------

SIDE = [1, 32, 32, 3]


def infer_request(
    shape: list[int] = SIDE,
    raw: list[bytes] | None = None,
    *,
    datatype: str = "UINT8",
    name: str = "image",
    model: str = "random",
    **more: Any,
) -> dict[str, Any]:
    """The fields of a request; one picture if nothing else is asked."""
    return {
        "model_name": model,
        "inputs": [{"name": name, "datatype": datatype, "shape": shape}],
        "raw_input_contents": [PIXELS[0].tobytes()] if raw is None else raw,
        **more,
    }


IMAGE = {"name": "image", "datatype": "UINT8", "shape": SIDE}
ELEMENT = len(PNGS[0]).to_bytes(4, "little") + PNGS[0]
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "nothing at all": ({}, "NOT_FOUND", "no model ''"),
    "unknown model": (infer_request(model="nobody"), "NOT_FOUND", "no model 'nobody'"),
    "model of 10,000 characters": (infer_request(model="a" * 10_000), "NOT_FOUND", "no model"),
    "model that is a path": (infer_request(model="../random"), "NOT_FOUND", "no model"),
    "unknown version": (infer_request(model_version="7"), "NOT_FOUND", "serve a version '7'"),
    "no input": ({"model_name": "random"}, "INVALID_ARGUMENT", "image: the input is missing"),
    "unknown input": (infer_request(name="pixels"), "INVALID_ARGUMENT", "no such input"),
    "input twice": (
        {"model_name": "random", "inputs": [IMAGE, IMAGE], "raw_input_contents": [b"", b""]},
        "INVALID_ARGUMENT",
        "more than once",
    ),
    "17 inputs": ({"model_name": "random", "inputs": [IMAGE] * 17}, "INVALID_ARGUMENT", "inputs"),
    "input name of 10,000 characters": (
        infer_request(name="a" * 10_000),
        "INVALID_ARGUMENT",
        "name: .* 200 characters",
    ),
    "id of 10,000 characters": (infer_request(id="a" * 10_000), "INVALID_ARGUMENT", "id: "),
    "datatype": (infer_request(datatype="INT8"), "INVALID_ARGUMENT", "'INT8' is not UINT8"),
    "no shape": (infer_request([]), "INVALID_ARGUMENT", "shape"),
    "another shape": (infer_request([1, 16, 32, 3]), "INVALID_ARGUMENT", r"\[N, 32, 32, 3\]"),
    "negative dimension": (infer_request([-1, 32, 32, 3]), "INVALID_ARGUMENT", "shape"),
    "dimension of 2^60": (infer_request([1 << 60, 32, 32, 3]), "INVALID_ARGUMENT", "shape"),
    "empty batch": (infer_request([0, 32, 32, 3], [b""]), "INVALID_ARGUMENT", "no pictures"),
    "batch too large": (infer_request([33, 32, 32, 3]), "INVALID_ARGUMENT", "at most 32"),
    "too few bytes": (infer_request(raw=[b"123"]), "INVALID_ARGUMENT", "3 bytes do not fill"),
    "too many bytes": (infer_request(raw=[bytes(4000)]), "INVALID_ARGUMENT", "do not fill"),
    "no contents": (infer_request(raw=[]), "INVALID_ARGUMENT", "do not fill"),
    "two raw contents": (infer_request(raw=[b"", b""]), "INVALID_ARGUMENT", "2 elements for 1 inputs"),
    "both contents": (
        infer_request() | {"inputs": [IMAGE | {"contents": {"uint_contents": [1]}}]},
        "INVALID_ARGUMENT",
        "both contents",
    ),
    "numbers above 255": (
        infer_request(raw=[]) | {"inputs": [IMAGE | {"contents": {"uint_contents": [256] * 3072}}]},
        "INVALID_ARGUMENT",
        "from 0 to 255",
    ),
    "values that no pixel has": (
        infer_request(raw=[np.full(SIDE, np.nan, "<f4").tobytes()], datatype="FP32"),
        "INVALID_ARGUMENT",
        "FP32 values",
    ),
    "more numbers than are read": (
        infer_request(raw=[]) | {"inputs": [IMAGE | {"contents": {"uint_contents": [0] * (1 << 20 | 1)}}]},
        "RESOURCE_EXHAUSTED",
        "raw_input_contents",
    ),
    "element beyond the end": (
        infer_request([1], [b"\xff\xff\xff\x7f1"], datatype="BYTES"),
        "INVALID_ARGUMENT",
        "goes beyond",
    ),
    "fewer elements": (infer_request([2], [ELEMENT], datatype="BYTES"), "INVALID_ARGUMENT", "holds 1 elements"),
    "no picture": (
        infer_request([1], [b"\x05\0\0\0hello"], datatype="BYTES"),
        "INVALID_ARGUMENT",
        "Picture 0: ",
    ),
    "URL": (
        infer_request([1], [b"\x12\0\0\0http://example.org"], datatype="BYTES"),
        "INVALID_ARGUMENT",
        "URL",
    ),
    "truncated picture": (
        infer_request([1], [(200).to_bytes(4, "little") + PNGS[0][:200]], datatype="BYTES"),
        "INVALID_ARGUMENT",
        "Picture 0: ",
    ),
    "unknown output": (infer_request(outputs=[{"name": "probabilities"}]), "INVALID_ARGUMENT", "no such output"),
    "output twice": (infer_request(outputs=[{"name": "logits"}] * 2), "INVALID_ARGUMENT", "more than once"),
    "classification of 0": (
        infer_request(outputs=[{"name": "logits", "parameters": {"classification": {"int64_param": 0}}}]),
        "INVALID_ARGUMENT",
        "classification",
    ),
    "classification in words": (
        infer_request(outputs=[{"name": "logits", "parameters": {"classification": {"string_param": "3"}}}]),
        "INVALID_ARGUMENT",
        "classification",
    ),
    "classes of heatmaps": (
        infer_request(
            [1],
            [ELEMENT],
            datatype="BYTES",
            model="dots",
            outputs=[{"name": "heatmaps", "parameters": {"classification": {"int64_param": 1}}}],
        ),
        "INVALID_ARGUMENT",
        "one value a class",
    ),
    "shared memory": (
        infer_request() | {"inputs": [IMAGE | {"parameters": {"shared_memory_region": {"string_param": "x"}}}]},
        "INVALID_ARGUMENT",
        "shared memory",
    ),
    "timeout in words": (
        infer_request(parameters={"timeout": {"string_param": "soon"}}),
        "INVALID_ARGUMENT",
        "timeout",
    ),
}


@pytest.mark.parametrize(("fields", "status", "told"), BAD.values(), ids=BAD.keys())
def test_bad_requests(
    stub: service_pb2_grpc.GRPCInferenceServiceStub, service: Server, fields: dict[str, Any], status: str, told: str
) -> None:
    route = METHOD + "ModelInfer"
    before = {
        "requests": service.metric("signet_requests_total", route=route, status="200"),
        "rejected": service.metric("signet_rejected_total"),
    }
    with pytest.raises(grpc.RpcError, match=told) as raised:
        stub.ModelInfer(service_pb2.ModelInferRequest(**fields))
    assert raised.value.code().name == status
    trailing = dict(raised.value.trailing_metadata())
    eventually(lambda: service.metric("signet_rejected_total") == before["rejected"] + 1)
    assert service.metric("signet_rejected_total", reason=trailing["x-problem"]) >= 1
    assert service.metric("signet_requests_total", route=route, status="200") == before["requests"]
    (event,) = [event for event in service.log_events() if event.get("request_id") == trailing["x-request-id"]]
    assert (event["grpc_status"], event["problem"]) == (status, trailing["x-problem"])


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
@pytest.mark.parametrize("asked", [{"name": "nobody"}, {"name": "random", "version": "7"}])
def test_what_is_not_there_is_not_found(
    stub: service_pb2_grpc.GRPCInferenceServiceStub, method: str, asked: dict[str, str]
) -> None:
    with pytest.raises(grpc.RpcError, match=r"no model|not serve a version") as raised:
        getattr(stub, method)(getattr(service_pb2, f"{method}Request")(**asked))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def test_there_is_one_repository(stub: service_pb2_grpc.GRPCInferenceServiceStub) -> None:
    with pytest.raises(grpc.RpcError, match="repository_name") as raised:
        stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(repository_name="other"))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_calls_have_the_id_that_the_client_gave_them(
    stub: service_pb2_grpc.GRPCInferenceServiceStub, service: Server
) -> None:
    _, call = stub.ServerMetadata.with_call(
        service_pb2.ServerMetadataRequest(), metadata=(("x-request-id", "mine-1"), ("other-bin", b"\xff"))
    )
    assert dict(call.trailing_metadata())["x-request-id"] == "mine-1"
    (event,) = [event for event in service.log_events() if event.get("request_id") == "mine-1"]
    assert event["route"] == METHOD + "ServerMetadata"
    assert event["client"] == "127.0.0.1"
    _, call = stub.ServerMetadata.with_call(
        service_pb2.ServerMetadataRequest(), metadata=(("x-request-id", 'not "harmless"'),)
    )
    assert len(dict(call.trailing_metadata())["x-request-id"]) == 32


def test_metrics_and_log_know_calls(client: triton.InferenceServerClient, service: Server) -> None:
    route = METHOD + "ModelInfer"
    asked = {"route": route, "model": "random", "status": "200"}
    before = service.metric("signet_requests_total", **asked), service.metric("signet_images_total", model="random")
    client.infer("random", [pixel_input(PIXELS[:5])])
    eventually(lambda: service.metric("signet_requests_total", **asked) == before[0] + 1)
    assert service.metric("signet_images_total", model="random") == before[1] + 5
    assert service.metric("signet_request_seconds_count", route=route) > before[0]
    event = [event for event in service.log_events() if event.get("route") == route][-1]
    assert (event["status"], event["grpc_status"], event["model"], event["version"]) == (200, "OK", "random", "2")
    eventually(lambda: service.metric("signet_in_flight") == 1)
