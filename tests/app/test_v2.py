"""The Open Inference Protocol V2, spoken by the stock clients of Triton to the running service."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tritonclient.utils import InferenceServerException

from app.images import denormalised
from models.packing.file import InputSpec
from models.xnor import Session
from tests.helpers import packed, pictures
from tests.helpers.packed import LABELS
from tests.helpers.server import Server
from tests.helpers.triton import EXTENSION_CALLS

PIXELS = np.stack([pictures.random_pixels(32, 32, seed) for seed in range(8)])
PNGS = [pictures.encoded(Image.fromarray(pixels), "PNG") for pixels in PIXELS]


@pytest.fixture(scope="module")
def logits(zoo: Path) -> np.ndarray:
    """What the newest `random` model says of PIXELS, straight from the engine."""
    return Session.load(zoo / "random" / "2" / "model.safetensors").run(PIXELS)["logits"]


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}", concurrency=4) as opened:
        yield opened


def pixel_input(pixels: np.ndarray, *, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("image", list(pixels.shape), "UINT8")
    return tensor.set_data_from_numpy(pixels, binary_data=binary)


def encoded_input(files: list[bytes], shape: list[int] | None = None) -> triton.InferInput:
    shape = shape or [len(files)]
    tensor = triton.InferInput("image", shape, "BYTES")
    return tensor.set_data_from_numpy(np.array(files, dtype=np.object_).reshape(shape))


def post(server: Server, content: bytes, **headers: str) -> Any:
    return server.client.post("/v2/models/random/infer", content=content, headers=headers)


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("random")
    assert client.is_model_ready("random", "1")
    assert not client.is_model_ready("random", "7")
    assert not client.is_model_ready("nobody")
    server = client.get_server_metadata()
    assert server["name"] == "signet"
    assert server["version"]
    tensors = client.get_model_metadata("random", "1")
    assert tensors == {
        "name": "random",
        "versions": ["1", "2"],
        "platform": "signet",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}],
    }


@pytest.mark.parametrize("extension", EXTENSION_CALLS)
def test_an_extension_is_advertised_exactly_if_it_works(client: triton.InferenceServerClient, extension: str) -> None:
    if extension in client.get_server_metadata()["extensions"]:
        EXTENSION_CALLS[extension](client)
        return
    with pytest.raises(InferenceServerException, match="There is nothing at this path") as raised:
        EXTENSION_CALLS[extension](client)
    assert raised.value.status() == "404"


def test_the_flow_of_nvidias_image_client(client: triton.InferenceServerClient, logits: np.ndarray) -> None:
    """Metadata, configuration, one batch, and `score:index:label`, with the checks that image_client.py makes."""
    metadata, config = client.get_model_metadata("random"), client.get_model_config("random")
    assert len(metadata["inputs"]) == len(metadata["outputs"]) == 1
    assert len(config["input"]) == 1
    assert metadata["outputs"][0]["datatype"] == "FP32"
    assert config["max_batch_size"] > 0
    assert sum(side > 1 for side in metadata["outputs"][0]["shape"][1:]) == 1
    assert config["input"][0]["format"] == "FORMAT_NHWC"
    _, height, width, channels = metadata["inputs"][0]["shape"]
    assert config["input"][0]["dims"] == [height, width, channels]
    assert config["input"][0]["data_type"] == "TYPE_UINT8"
    assert config["output"] == [{"name": "logits", "data_type": "TYPE_FP32", "dims": [10]}]

    batch = np.stack([PIXELS[0], PIXELS[1], PIXELS[2]])
    assert batch.shape[1:] == (height, width, channels)
    tensor = triton.InferInput(metadata["inputs"][0]["name"], list(batch.shape), metadata["inputs"][0]["datatype"])
    tensor.set_data_from_numpy(batch)
    wanted = triton.InferRequestedOutput(metadata["outputs"][0]["name"], class_count=3)
    answer = client.infer("random", [tensor], request_id="7", model_version="", outputs=[wanted])
    assert answer.get_response()["id"] == "7"
    assert answer.get_response()["model_version"] == "2"
    rows = answer.as_numpy("logits")
    assert rows.shape == (3, 3)
    for row, expected in zip(rows, logits, strict=False):
        for text, index in zip(row, np.argsort(-expected)[:3], strict=True):
            score, number, label = "".join(chr(letter) for letter in text).split(":")
            assert float(score) == pytest.approx(expected[index], abs=1e-5)
            assert (int(number), label) == (index, LABELS[index])


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_pixels_in_and_logits_out(
    client: triton.InferenceServerClient, logits: np.ndarray, binary_in: bool, binary_out: bool
) -> None:
    answer = client.infer(
        "random",
        [pixel_input(PIXELS[:2], binary=binary_in)],
        outputs=[triton.InferRequestedOutput("logits", binary_data=binary_out)],
    )
    found = answer.as_numpy("logits")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, logits[:2])
    assert ("data" in answer.get_output("logits")) != binary_out


@pytest.mark.parametrize("binary", [True, False])
def test_classes_are_text_in_json_and_in_bytes(client: triton.InferenceServerClient, binary: bool) -> None:
    wanted = triton.InferRequestedOutput("logits", binary_data=binary, class_count=1000)
    rows = client.infer("random", [pixel_input(PIXELS[:2])], outputs=[wanted]).as_numpy("logits")
    assert rows.shape == (2, 10)
    texts = [text.decode() if isinstance(text, bytes) else text for text in rows[0]]
    assert sorted(text.split(":")[2] for text in texts) == sorted(LABELS)


@pytest.mark.parametrize("shape", [[3], [3, 1]])
def test_encoded_pictures(client: triton.InferenceServerClient, logits: np.ndarray, shape: list[int]) -> None:
    found = client.infer("random", [encoded_input(PNGS[:3], shape)]).as_numpy("logits")
    np.testing.assert_array_equal(found, logits[:3])


def test_encoded_pictures_in_json_are_base64(client: triton.InferenceServerClient, logits: np.ndarray) -> None:
    texts = np.array([base64.b64encode(data) for data in PNGS[:2]], dtype=np.object_)
    tensor = triton.InferInput("image", [2], "BYTES").set_data_from_numpy(texts, binary_data=False)
    np.testing.assert_array_equal(client.infer("random", [tensor]).as_numpy("logits"), logits[:2])


def test_pictures_are_prepared_as_on_the_other_routes(server: Server, client: triton.InferenceServerClient) -> None:
    photo = pictures.jpeg(375, 500)
    wanted = triton.InferRequestedOutput("logits", class_count=10)
    rows = client.infer("random", [encoded_input([photo])], outputs=[wanted]).as_numpy("logits")
    indices = [int(text.decode().split(":")[1]) for text in rows[0]]
    assert indices == [entry["index"] for entry in server.classify(photo, top_k=10).json()["predictions"]]


@pytest.mark.parametrize("request_encoding", ["gzip", "deflate", None])
@pytest.mark.parametrize("response_encoding", ["gzip", "deflate", None])
def test_compression_both_ways(
    client: triton.InferenceServerClient,
    logits: np.ndarray,
    request_encoding: str | None,
    response_encoding: str | None,
) -> None:
    many = np.concatenate([PIXELS] * 4)
    answer = client.infer(
        "random",
        [pixel_input(many)],
        request_compression_algorithm=request_encoding,
        response_compression_algorithm=response_encoding,
    )
    np.testing.assert_array_equal(answer.as_numpy("logits"), np.concatenate([logits] * 4))


@pytest.mark.parametrize(("encoding", "undo"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_answers_are_really_compressed(server: Server, encoding: str, undo: Callable[[bytes], bytes]) -> None:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [8, 32, 32, 3], "data": PIXELS.ravel().tolist()}
    content = json.dumps({"inputs": [tensor]}).encode()
    with server.client.stream(
        "POST", "/v2/models/random/infer", content=content, headers={"Accept-Encoding": f"br, {encoding}"}
    ) as reply:
        raw = b"".join(reply.iter_raw())
    assert reply.headers["content-encoding"] == encoding
    assert json.loads(undo(raw))["outputs"][0]["shape"] == [8, 10]
    plain = post(server, content, **{"Accept-Encoding": f"{encoding};q=0, identity"})
    assert "content-encoding" not in plain.headers


def test_the_whole_body_may_be_pixels(server: Server, logits: np.ndarray) -> None:
    reply = post(server, PIXELS[:2].tobytes(), **{"Inference-Header-Content-Length": "0"})
    length = int(reply.headers["inference-header-content-length"])
    assert json.loads(reply.content[:length])["outputs"][0]["shape"] == [2, 10]
    found = np.frombuffer(reply.content[length:], np.float32).reshape(2, 10)
    np.testing.assert_array_equal(found, logits[:2])


def test_nested_data_and_a_request_without_headers(server: Server, logits: np.ndarray) -> None:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": PIXELS[:1].tolist()}
    answer = post(server, json.dumps({"inputs": [tensor]}).encode()).json()
    assert answer["outputs"][0]["data"] == pytest.approx(logits[0].tolist())
    assert "id" not in answer


def test_the_asyncio_client(server: Server, logits: np.ndarray) -> None:
    async def talk() -> None:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("random")
            assert (await client.get_server_metadata())["name"] == "signet"
            assert (await client.get_model_metadata("random"))["name"] == "random"
            assert (await client.get_model_config("random"))["max_batch_size"] > 0
            assert len(await client.get_model_repository_index()) == 4
            assert (await client.get_inference_statistics("random"))["model_stats"]
            answers = await asyncio.gather(
                *(client.infer("random", [pixel_input(PIXELS[index : index + 1])]) for index in range(8)),
                client.infer("random", [encoded_input(PNGS * 4)], response_compression_algorithm="gzip"),
            )
            for index in range(8):
                np.testing.assert_array_equal(answers[index].as_numpy("logits"), logits[index : index + 1])
            np.testing.assert_array_equal(answers[8].as_numpy("logits"), np.concatenate([logits] * 4))
            with pytest.raises(InferenceServerException, match="no model 'nobody'"):
                await client.infer("nobody", [pixel_input(PIXELS[:1])])

    asyncio.run(talk())


def test_async_requests_of_the_plain_client_get_their_own_answers(
    client: triton.InferenceServerClient, logits: np.ndarray
) -> None:
    pending = [client.async_infer("random", [pixel_input(PIXELS[index : index + 1])]) for index in range(8)]
    for index, request in enumerate(pending):
        np.testing.assert_array_equal(request.get_result().as_numpy("logits"), logits[index : index + 1])


def test_versions_are_addressed(client: triton.InferenceServerClient, zoo: Path) -> None:
    first = Session.load(zoo / "random" / "1" / "model.safetensors").run(PIXELS[:1])["logits"]
    answer = client.infer("random", [pixel_input(PIXELS[:1])], model_version="1")
    assert answer.get_response()["model_version"] == "1"
    np.testing.assert_array_equal(answer.as_numpy("logits"), first)
    assert client.get_model_config("random", "1")["name"] == "random"


def test_the_repository_index(client: triton.InferenceServerClient) -> None:
    index = client.get_model_repository_index()
    assert [(entry["name"], entry["version"], entry["state"]) for entry in index] == [
        ("colour", "1", "READY"),
        ("dots", "1", "READY"),
        ("random", "1", "READY"),
        ("random", "2", "READY"),
    ]


def test_a_broken_model_is_told_in_the_index(tmp_path: Path, zoo: Path) -> None:
    for name, size in (("good", None), ("bad", 5000)):
        path = tmp_path / name / "1" / "model.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes((zoo / "random" / "1" / "model.safetensors").read_bytes()[:size])
    running = Server(tmp_path)
    try:
        with triton.InferenceServerClient(f"127.0.0.1:{running.port}") as client:
            assert not client.is_model_ready("bad")
            for call in (client.get_model_metadata, client.get_model_config):
                with pytest.raises(InferenceServerException) as raised:
                    call("bad")
                assert raised.value.status() == "503"
            with pytest.raises(InferenceServerException) as raised:
                client.infer("bad", [pixel_input(PIXELS[:1])])
            assert raised.value.status() == "503"
            bad, _ = client.get_model_repository_index()
            assert (bad["name"], bad["state"]) == ("bad", "UNAVAILABLE")
            assert bad["reason"]
        reply = running.client.post("/v2/repository/index", json={"ready": True})
        assert [entry["name"] for entry in reply.json()] == ["good"]
    finally:
        running.close()


def test_heatmaps_of_a_pose_model(tmp_path: Path) -> None:
    path = tmp_path / "pose" / "1" / "model.safetensors"
    packed.write_pose(path)
    expected = Session.load(path).run(PIXELS[:2])["heatmaps"]
    running = Server(tmp_path)
    try:
        with triton.InferenceServerClient(f"127.0.0.1:{running.port}") as client:
            (described,) = client.get_model_metadata("pose")["outputs"]
            assert described == {"name": "heatmaps", "datatype": "FP32", "shape": [-1, 16, 16, 5]}
            for tensor in (pixel_input(PIXELS[:2]), encoded_input(PNGS[:2])):
                for encoding in (None, "gzip"):
                    answer = client.infer("pose", [tensor], response_compression_algorithm=encoding)
                    np.testing.assert_array_equal(answer.as_numpy("heatmaps"), expected)
            wanted = triton.InferRequestedOutput("heatmaps", class_count=1)
            with pytest.raises(InferenceServerException, match="one value a class") as raised:
                client.infer("pose", [pixel_input(PIXELS[:1])], outputs=[wanted])
            assert raised.value.status() == "400"
    finally:
        running.close()


def normalised(model: Path) -> np.ndarray:
    """PIXELS as a client normalises them, in double precision, to float32 [N, height, width, 3]."""
    spec = Session.load(model).file.header.input
    return ((PIXELS / 255 - np.array(spec.mean)) / np.array(spec.std)).astype(np.float32)


@pytest.mark.parametrize("task", ["classification", "pose"])
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
@pytest.mark.parametrize("channels", ["last", "first"])
def test_each_model_takes_pixels_normalised_pixels_and_encoded_pictures(
    server: Server, zoo: Path, tmp_path: Path, task: str, binary: bool, channels: str
) -> None:
    """What comes from pixels is answered bit for bit as they are, whichever of the three comes."""
    if task == "classification":
        path, name, output, asked = zoo / "random" / "2" / "model.safetensors", "random", "logits", server
    else:
        path, name, output = tmp_path / "pose" / "1" / "model.safetensors", "pose", "heatmaps"
        packed.write_pose(path)
        asked = Server(tmp_path)
    try:
        expected = Session.load(path).run(PIXELS[:2])[output]
        values = normalised(path)[:2]
        if channels == "first":
            values = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
        floats = triton.InferInput("image", list(values.shape), "FP32").set_data_from_numpy(values, binary_data=binary)
        pixels = pixel_input(PIXELS[:2], binary=binary)
        with triton.InferenceServerClient(f"127.0.0.1:{asked.port}") as client:
            for tensor in (pixels, floats, encoded_input(PNGS[:2])):
                np.testing.assert_array_equal(client.infer(name, [tensor]).as_numpy(output), expected)
    finally:
        if asked is not server:
            asked.close()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.0, -3.0, 255.0, 3e38])
def test_a_value_that_no_pixel_has_is_refused(client: triton.InferenceServerClient, zoo: Path, value: float) -> None:
    values = normalised(zoo / "random" / "2" / "model.safetensors")[:1]
    values[0, 3, 4, 1] = value
    tensor = triton.InferInput("image", list(values.shape), "FP32").set_data_from_numpy(values)
    with pytest.raises(InferenceServerException, match=r"\(pixel / 255 - mean\) / std") as raised:
        client.infer("random", [tensor])
    assert raised.value.status() == "400"


@pytest.mark.parametrize("shape", [[1, 32, 32, 3, 1], [1, 3072], [32, 32, 3], [1, 16, 64, 3]])
def test_normalised_pixels_of_another_shape_are_refused(client: triton.InferenceServerClient, shape: list[int]) -> None:
    tensor = triton.InferInput("image", shape, "FP32").set_data_from_numpy(np.zeros(shape, np.float32))
    with pytest.raises(InferenceServerException, match=r"is not .N, 32, 32, 3. or .N, 3, 32, 32.") as raised:
        client.infer("random", [tensor])
    assert raised.value.status() == "400"


@given(
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.05, 1)] * 3),
)
@settings(deadline=None, max_examples=30)
def test_every_pixel_comes_back_from_its_normalised_value(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    pixels = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 3, axis=3)
    spec = InputSpec(height=16, width=16, mean=mean, std=std)
    values = ((pixels / 255 - np.array(mean)) / np.array(std)).astype(np.float32)
    np.testing.assert_array_equal(denormalised(values, spec), pixels)


def test_statistics_count_every_protocol(client: triton.InferenceServerClient, server: Server) -> None:
    def colour() -> dict[str, Any]:
        (entry,) = client.get_inference_statistics("colour", "1")["model_stats"]
        return dict(entry)

    before = colour()
    server.classify(PNGS[0], model="colour")
    client.infer("colour", [pixel_input(PIXELS[:3])])
    client.infer("colour", [encoded_input(PNGS[:3])])
    with pytest.raises(InferenceServerException):
        client.infer("colour", [encoded_input([b"no picture"])])
    after = colour()
    assert after["inference_count"] - before["inference_count"] == 7
    assert after["execution_count"] - before["execution_count"] == 3
    assert after["last_inference"] > 1_600_000_000_000
    for name, count in (("success", 3), ("fail", 1), ("compute_infer", 3), ("compute_output", 3), ("queue", 3)):
        assert after["inference_stats"][name]["count"] - before["inference_stats"][name]["count"] == count
        assert after["inference_stats"][name]["ns"] > before["inference_stats"][name]["ns"]
    assert 3 in {entry["batch_size"] for entry in after["batch_stats"]}
    every = client.get_inference_statistics()["model_stats"]
    names = [("colour", "1"), ("dots", "1"), ("random", "1"), ("random", "2")]
    assert [(entry["name"], entry["version"]) for entry in every] == names
    assert len(client.get_inference_statistics("random")["model_stats"]) == 2


def test_errors_reach_the_client_as_text(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as raised:
        client.infer("random", [pixel_input(PIXELS[:1, :16])])
    assert raised.value.status() == "400"
    assert "[N, 32, 32, 3]" in raised.value.message()
    with pytest.raises(InferenceServerException) as raised:
        client.infer("random", [encoded_input([PNGS[0], PNGS[1][:200]])])
    assert raised.value.status() == "422"
    assert raised.value.message().startswith("Picture 1: ")


def test_metrics_count_batches(server: Server, client: triton.InferenceServerClient) -> None:
    images = server.metric("signet_images_total", model="random")
    runs = server.metric("signet_batch_images_count")
    client.infer("random", [pixel_input(PIXELS[:5])])
    assert server.metric("signet_images_total", model="random") == images + 5
    assert server.metric("signet_batch_images_count") == runs + 1
    route = "/v2/models/{name}/infer"
    assert server.metric("signet_requests_total", route=route, model="random", status="200") > 0


@given(chosen=st.lists(st.integers(0, len(PNGS) - 1), min_size=1, max_size=32), encoded=st.booleans())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_batch_answers_as_its_pictures_do_alone(
    client: triton.InferenceServerClient, logits: np.ndarray, chosen: list[int], encoded: bool
) -> None:
    tensor = encoded_input([PNGS[index] for index in chosen]) if encoded else pixel_input(PIXELS[chosen])
    found = client.infer("random", [tensor]).as_numpy("logits")
    np.testing.assert_array_equal(found, logits[chosen])


def test_batches_of_many_clients_do_not_mix(server: Server, logits: np.ndarray) -> None:
    def ask(seed: int) -> None:
        chosen = np.random.default_rng(seed).integers(0, len(PIXELS), 1 + seed % 7)
        content = PIXELS[chosen].tobytes()
        reply = post(server, content, **{"Inference-Header-Content-Length": "0"})
        length = int(reply.headers["inference-header-content-length"])
        found = np.frombuffer(reply.content[length:], np.float32).reshape(-1, 10)
        np.testing.assert_array_equal(found, logits[chosen])

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(ask, range(48)))
