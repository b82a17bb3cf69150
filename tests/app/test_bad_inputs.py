"""Everything that may be wrong with a request, sent to the running service.

Each answer is a problem with its documented status; afterwards the service answers as before, its memory has not
grown, and a counter labelled with the reason has moved.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import random
import socket
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from tests.helpers import pictures
from tests.helpers.requests import MULTIPART, multipart, part, request
from tests.helpers.server import Server, eventually, read_reply

MEMORY_SLACK_BYTES = 16 << 20
JPEG = pictures.jpeg()
LINK = "http://127.0.0.1:9/cat.jpg"


@dataclass(frozen=True)
class Case:
    """A request and the answer it gets; `reason` is the label of the counter."""

    name: str
    status: int
    reason: str
    body: Callable[[], bytes] = bytes
    content_type: str = "image/jpeg"
    target: str = ""
    method: str = "POST"
    headers: Sequence[tuple[str, str]] = ()
    header: tuple[str, str] | None = None


def noise(size: int = 20_000) -> bytes:
    return random.Random(0).randbytes(size)


def eps() -> bytes:
    return pictures.encoded(Image.new("RGB", (8, 8)), "EPS")


def icns() -> bytes:
    return pictures.encoded(Image.new("RGBA", (64, 64)), "ICNS")


def gif() -> bytes:
    return pictures.encoded(Image.new("P", (8, 8)), "GIF")


def tiff() -> bytes:
    return pictures.encoded(Image.new("RGB", (8, 8)), "TIFF")


def broken_png() -> bytes:
    return pictures.raw_png(pictures.flat_rows(b"\1\2\3", 32, 32), 32, 32, depth=8, colour=2, broken=True)


def many_scans() -> bytes:
    """A progressive JPEG whose last scan is repeated thousands of times."""
    data = pictures.jpeg(progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * 5000 + b"\xff\xd9"


def form(*parts: bytes) -> Callable[[], bytes]:
    return lambda: multipart(parts)


INFER = "/v2/models/random/infer"
PIXELS = bytes(32 * 32 * 3)


def tensor(**changed: object) -> dict[str, object]:
    """A sound input of one black picture, with members changed, or left out where they are None."""
    sound = {"name": "image", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [0] * len(PIXELS)}
    return {key: value for key, value in {**sound, **changed}.items() if value is not None}


def infer(name: str, reason: str, body: Callable[[], bytes], status: int = 400, *headers: tuple[str, str]) -> Case:
    return Case(f"V2: {name}", status, reason, body, "application/json", INFER, headers=headers)


def inputs(*tensors: object, **more: object) -> Callable[[], bytes]:
    return lambda: json.dumps({"inputs": tensors, **more}).encode()


def with_bytes(name: str, raw: bytes, reason: str = "bad-tensor", status: int = 400, **changed: object) -> Case:
    """A request whose tensor stands behind the JSON."""
    described = tensor(**{"data": None, "parameters": {"binary_data_size": len(raw)}, **changed})
    head = json.dumps({"inputs": [described]}).encode()
    return infer(name, reason, lambda: head + raw, status, (LENGTH, str(len(head))))


def data_of(text: str) -> Callable[[], bytes]:
    return lambda: inputs(tensor(data=["?"]))().replace(b'"?"', text.encode())


LENGTH = "Inference-Header-Content-Length"
ONE = json.dumps({"inputs": [tensor()]}).encode()

V2_CASES = [
    with_bytes("bytes too few", PIXELS[:-1]),
    with_bytes("bytes too many", PIXELS + b"1"),
    with_bytes("no bytes", b""),
    with_bytes("size that is a lie", PIXELS, parameters={"binary_data_size": 1 << 60}),
    with_bytes("size that is negative", PIXELS, parameters={"binary_data_size": -1}),
    with_bytes("size that is text", PIXELS, parameters={"binary_data_size": "3072"}),
    with_bytes("size and data", PIXELS, data=[0]),
    with_bytes("bytes that no tensor claims", PIXELS, parameters={}),
    with_bytes("negative dimension", PIXELS, shape=[-1, 32, 32, 3]),
    with_bytes("dimension of 2^60", PIXELS, shape=[1 << 60, 32, 32, 3]),
    with_bytes("dimension of 2^200", PIXELS, shape=[1 << 200, 32, 32, 3]),
    with_bytes("dimensions whose product wraps around", PIXELS, shape=[1, 1 << 32, 1 << 32, 3]),
    with_bytes("dimension of text", PIXELS, "bad-json", shape=["1", 32, 32, 3]),
    with_bytes("dimension that is no whole number", PIXELS, "bad-json", shape=[1.5, 32, 32, 3]),
    with_bytes("no dimensions", PIXELS, "bad-json", shape=[]),
    with_bytes("a thousand dimensions", PIXELS, "bad-json", shape=[1] * 1000),
    with_bytes("another size of picture", PIXELS, shape=[1, 3, 32, 32]),
    with_bytes("element beyond the bytes", b"\xff\xff\xff\xff" + JPEG, datatype="BYTES", shape=[1]),
    with_bytes("element's length cut off", b"\1\0", datatype="BYTES", shape=[1]),
    with_bytes("fewer elements than the shape says", b"\1\0\0\0a", datatype="BYTES", shape=[2]),
    with_bytes("element of no bytes", bytes(4), "missing-image", 422, datatype="BYTES", shape=[1]),
    with_bytes("element that is no picture", b"\5\0\0\0Hello", "not-an-image", 415, datatype="BYTES", shape=[1]),
    with_bytes("empty batch of pixels", b"", "empty-batch", 422, shape=[0, 32, 32, 3]),
    with_bytes("empty batch of pictures", b"", "empty-batch", 422, datatype="BYTES", shape=[0]),
    with_bytes("batch above the maximum", PIXELS * 33, "batch-too-large", 413, shape=[33, 32, 32, 3]),
    infer("URL in JSON", "image-is-url", inputs(tensor(datatype="BYTES", shape=[1], data=[LINK])), 422),
    infer("data too few", "bad-tensor", inputs(tensor(data=[0]))),
    infer("data of no element", "bad-tensor", inputs(tensor(data=[]))),
    infer("data missing", "bad-tensor", inputs(tensor(data=None))),
    infer("data of rows of two lengths", "bad-tensor", inputs(tensor(data=[[0, 0], [0]]))),
    infer("data in another shape", "bad-tensor", inputs(tensor(data=[[0] * 1024] * 3))),
    infer("data of text", "bad-tensor", inputs(tensor(data=["0"] * len(PIXELS)))),
    infer("data beyond a byte", "bad-tensor", inputs(tensor(data=[256] * len(PIXELS)))),
    infer("data below zero", "bad-tensor", inputs(tensor(data=[-1] * len(PIXELS)))),
    infer("data of 2^70", "bad-tensor", inputs(tensor(data=[1 << 70] * len(PIXELS)))),
    infer("data of half a number", "bad-tensor", inputs(tensor(data=[0.5] * len(PIXELS)))),
    infer("data of 1e999", "bad-tensor", data_of(",".join(["1e999"] * len(PIXELS)))),
    infer("data of -1e999", "bad-tensor", data_of(",".join(["-1e999"] * len(PIXELS)))),
    infer("data of NaN", "bad-json", data_of(",".join(["NaN"] * len(PIXELS)))),
    infer("data of Infinity", "bad-json", data_of("Infinity")),
    infer("data of -Infinity", "bad-json", data_of("-Infinity")),
    infer("picture that is a number", "bad-tensor", inputs(tensor(datatype="BYTES", shape=[1], data=[1]))),
    infer("header length of -1", "bad-request", lambda: ONE, 400, (LENGTH, "-1")),
    infer("header length of abc", "bad-request", lambda: ONE, 400, (LENGTH, "abc")),
    infer("header length of 1e3", "bad-request", lambda: ONE, 400, (LENGTH, "1e3")),
    infer("header length that is empty", "bad-request", lambda: ONE, 400, (LENGTH, "")),
    infer("header length past the body", "bad-request", lambda: ONE, 400, (LENGTH, str(len(ONE) + 1))),
    infer("header length of 10^5000", "bad-request", lambda: ONE, 400, (LENGTH, "1" + "0" * 5000)),
    infer("header length within the JSON", "bad-json", lambda: ONE, 400, (LENGTH, str(len(ONE) - 1))),
    infer("header length of 0 before JSON", "bad-tensor", lambda: ONE[:3071], 400, (LENGTH, "0")),
    infer("unknown tensor", "bad-tensor", inputs(tensor(name="other"))),
    infer("tensor of a long name", "bad-json", inputs(tensor(name="n" * 10_000))),
    infer("tensor without a name", "bad-json", inputs(tensor(name=None))),
    infer("tensor twice", "bad-tensor", inputs(tensor(), tensor())),
    infer("tensor and an unknown one", "bad-tensor", inputs(tensor(), tensor(name="other"))),
    infer("no tensor", "bad-tensor", inputs()),
    infer("no inputs", "bad-json", lambda: b"{}"),
    infer("unknown datatype", "bad-tensor", inputs(tensor(datatype="FP128"))),
    infer("datatype that the model does not take", "bad-tensor", inputs(tensor(datatype="FP16"))),
    infer("pixels for normalised ones", "bad-tensor", inputs(tensor(datatype="FP32", data=[200] * 3072))),
    infer("normalised pixels of text", "bad-tensor", inputs(tensor(datatype="FP32", data=["0.5"] * 3072))),
    infer("normalised pixels beyond float32", "bad-tensor", inputs(tensor(datatype="FP32", data=[1e300] * 3072))),
    infer("datatype missing", "bad-json", inputs(tensor(datatype=None))),
    infer("shape missing", "bad-json", inputs(tensor(shape=None))),
    infer("shared memory", "bad-tensor", inputs(tensor(data=None, parameters={"shared_memory_region": "r"}))),
    infer("unknown output", "bad-tensor", inputs(tensor(), outputs=[{"name": "other"}])),
    infer("output twice", "bad-tensor", inputs(tensor(), outputs=[{"name": "logits"}] * 2)),
    *(
        infer(
            f"classification of {classes!r}",
            "bad-tensor",
            inputs(tensor(), outputs=[{"name": "logits", "parameters": {"classification": classes}}]),
        )
        for classes in (0, -1, "3", True, 1.5, None)
    ),
    infer(
        "binary_data of yes",
        "bad-tensor",
        inputs(tensor(), outputs=[{"name": "logits", "parameters": {"binary_data": "yes"}}]),
    ),
    infer("malformed JSON", "bad-json", lambda: ONE[:-2]),
    infer("JSON twice", "bad-json", lambda: ONE + ONE),
    infer("JSON 201 deep", "bad-json", lambda: b'{"a":' * 201 + b"1" + b"}" * 201),
    infer("JSON 100,000 deep", "bad-json", lambda: b"[" * 100_000 + b"]" * 100_000),
    infer("JSON objects 100,000 deep", "bad-json", lambda: b'{"inputs":' * 100_000),
    infer("JSON that is not UTF-8", "bad-json", lambda: b'{"inputs": "\xff\xfe"}'),
    infer("JSON in UTF-16", "bad-json", lambda: ONE.decode().encode("utf-16")),
    infer("JSON of a list", "bad-json", lambda: b"[]"),
    infer("JSON of null", "bad-json", lambda: b"null"),
    infer("JSON of a lone surrogate", "bad-json", lambda: b'{"id": "\\ud800", "inputs": []}'),
    infer("JSON of a number of 10,000 digits", "bad-json", lambda: b'{"inputs": ' + b"1" * 10_000 + b"}"),
    infer("JSON above its limit", "body-too-large", lambda: b"[" + b" " * (4 << 20), 413),
    infer("empty body", "empty-body", bytes),
    infer("gzip that is none", "bad-request", lambda: ONE, 400, ("Content-Encoding", "gzip")),
    infer(
        "gzip that inflates to 200 MB",
        "body-too-large",
        lambda: gzip.compress(bytes(200 << 20)),
        413,
        ("Content-Encoding", "gzip"),
    ),
    infer("unknown encoding", "unsupported-encoding", lambda: ONE, 415, ("Content-Encoding", "br")),
    Case("V2: index of malformed JSON", 400, "bad-json", lambda: b"{", target="/v2/repository/index"),
    *(
        Case(f"V2: {what} of {name}", 404, reason, target=f"/v2/models/{shown}{path}", method=method)
        for name, shown, reason in (
            ("an unknown model", "nobody", "unknown-model"),
            ("an unknown version", "random/versions/77", "unknown-model"),
            ("a version that is no number", "random/versions/one", "unknown-model"),
            ("dots", "..%2f..%2fetc", "not-found"),
            ("NUL", "%00", "unknown-model"),
            ("10,000 characters", "m" * 10_000, "unknown-model"),
        )
        for what, path, method in (("infer", "/infer", "POST"), ("metadata", "", "GET"), ("config", "/config", "GET"))
    ),
    Case("V2: wrong method", 405, "method-not-allowed", target=INFER, method="GET", header=("allow", "POST")),
]


ROUTES = ("/v1/classify", "/v1/pose")
BATCH = "/v1/classify/batch"


def batch_cases(route: str) -> list[Case]:
    picture = part("image", JPEG)
    return [
        Case(f"{route}: no body", 400, "empty-body", target=route),
        Case(f"{route}: one picture", 400, "bad-multipart", lambda: JPEG, target=route),
        Case(f"{route}: no boundary", 400, "bad-multipart", form(picture), "multipart/form-data", route),
        Case(f"{route}: no pictures", 422, "empty-batch", form(part("version", b"1")), MULTIPART, route),
        Case(f"{route}: 33 pictures", 413, "batch-too-large", form(*[part("image", b"x")] * 33), MULTIPART, route),
        Case(f"{route}: 1,000 pictures", 413, "batch-too-large", form(*[part("image", b"x")] * 1000), MULTIPART, route),
        Case(f"{route}: unknown model", 404, "unknown-model", form(picture), MULTIPART, f"{route}?model=x"),
        Case(f"{route}: got", 405, "method-not-allowed", target=route, method="GET", header=("allow", "POST")),
    ]


# Sent to each route that takes a picture: the target is the route's own.
PICTURE_CASES = [
    Case("empty body", 400, "empty-body"),
    Case("form without an image", 422, "missing-image", form(part("top_k", b"3")), MULTIPART),
    Case("image of no bytes", 422, "missing-image", form(part("image", b"", filename="a.jpg")), MULTIPART),
    Case("text", 415, "not-an-image", lambda: b"Hello, I am a picture."),
    Case("HTML", 415, "not-an-image", lambda: b"<!doctype html><html><body>http://example.org</body></html>"),
    Case("SVG", 415, "not-an-image", lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><rect/></svg>'),
    Case("PDF", 415, "not-an-image", lambda: b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n"),
    Case("EPS", 415, "not-an-image", eps),
    Case("FITS", 415, "not-an-image", lambda: b"SIMPLE  =                    T".ljust(2880)),
    Case("PSD", 415, "not-an-image", lambda: b"8BPS\x00\x01".ljust(64, b"\0")),
    Case("ICNS", 415, "not-an-image", icns),
    Case("GIF", 415, "not-an-image", gif),
    Case("TIFF", 415, "not-an-image", tiff),
    Case("JPEG cut in the middle", 422, "broken-image", lambda: JPEG[: len(JPEG) // 2]),
    Case("JPEG of its header alone", 422, "broken-image", lambda: JPEG[:200]),
    Case("PNG cut in the middle", 422, "broken-image", lambda: pictures.png()[:-600]),
    Case("PNG without its end chunk", 422, "broken-image", lambda: pictures.png()[:-12]),
    Case("PNG with a wrong checksum", 422, "broken-image", broken_png),
    Case("PNG of its magic alone", 422, "broken-image", lambda: pictures.PNG_MAGIC),
    Case("WebP cut in the middle", 422, "broken-image", lambda: pictures.webp()[:-600]),
    Case("JPEG magic, then noise", 422, "broken-image", lambda: b"\xff\xd8\xff\xe0" + noise()),
    Case("PNG magic, then noise", 422, "broken-image", lambda: pictures.PNG_MAGIC + noise()),
    Case("WebP magic, then noise", 422, "broken-image", lambda: b"RIFF\xff\xff\0\0WEBPVP8 " + noise()),
    Case("JPEG of thousands of scans", 422, "broken-image", many_scans),
    Case("50,000 x 50,000 pixels", 413, "too-many-pixels", pictures.pixel_bomb),
    Case("9,000 x 9,000 pixels", 413, "too-many-pixels", lambda: pictures.pixel_bomb(9000)),
    Case("65,500 x 65,500 JPEG", 413, "too-many-pixels", lambda: pictures.resized_jpeg(JPEG, 65_500)),
    Case("16,383 x 16,383 WebP", 413, "too-many-pixels", lambda: pictures.resized_webp(pictures.webp(), 16_383)),
    Case("JPEG of a million segments", 422, "broken-image", lambda: JPEG[:2] + b"\xff\xfe\0\2" * 900_000 + JPEG[2:]),
    Case("PNG of a hundred thousand chunks", 422, "broken-image", pictures.many_chunks),
    Case("comment that inflates to 200 MB", 422, "broken-image", pictures.text_bomb),
    Case("colour profile that inflates to 200 MB", 422, "broken-image", pictures.profile_bomb),
    Case("international text that inflates to 200 MB", 422, "broken-image", pictures.international_bomb),
    Case("body above the limit", 413, "body-too-large", lambda: JPEG + bytes(5 << 20)),
    Case(
        "gzip that inflates to 200 MB",
        413,
        "body-too-large",
        lambda: gzip.compress(bytes(200 << 20)),
        headers=[("Content-Encoding", "gzip")],
    ),
    Case("gzip that is none", 400, "bad-request", lambda: JPEG, headers=[("Content-Encoding", "gzip")]),
    Case("gzip cut off", 400, "bad-request", lambda: gzip.compress(JPEG)[:-50], headers=[("Content-Encoding", "gzip")]),
    Case("unknown encoding", 415, "unsupported-encoding", lambda: JPEG, headers=[("Content-Encoding", "zip")]),
    Case("form without a boundary", 400, "bad-multipart", form(part("image", JPEG)), "multipart/form-data"),
    Case("form of something else", 400, "bad-multipart", lambda: b"image=1", MULTIPART),
    Case(
        "form without its end", 400, "bad-multipart", lambda: multipart([part("image", JPEG)], closed=False), MULTIPART
    ),
    Case("part with 1,000 headers", 400, "bad-multipart", form(b"X-A: b\r\n" * 1000 + part("image", JPEG)), MULTIPART),
    Case(
        "part with a header of 100 kB",
        400,
        "bad-multipart",
        form(part("image", JPEG, filename="n" * 100_000)),
        MULTIPART,
    ),
    Case("1,000 parts", 400, "bad-multipart", form(part("image", JPEG), *[part("x", b"1")] * 1000), MULTIPART),
    Case("two images", 400, "bad-multipart", form(part("image", JPEG), part("image", JPEG)), MULTIPART),
    Case("unknown model", 404, "unknown-model", lambda: JPEG, target="?model=nobody"),
    Case("unknown version", 404, "unknown-model", lambda: JPEG, target="?model=random&version=77"),
    Case("version that is no number", 404, "unknown-model", lambda: JPEG, target="?version=one"),
    Case("unknown model in the form", 404, "unknown-model", form(part("image", JPEG), part("model", b"x")), MULTIPART),
    Case("model of dots", 404, "unknown-model", lambda: JPEG, target="?model=..%2f..%2fetc"),
    Case("model of NUL", 404, "unknown-model", lambda: JPEG, target="?model=%00"),
    Case("model of 10,000 characters", 404, "unknown-model", lambda: JPEG, target="?model=" + "m" * 10_000),
    Case("URL as the image", 422, "image-is-url", form(part("image", LINK.encode())), MULTIPART),
    Case("URL as the body", 422, "image-is-url", LINK.encode, "text/plain"),
    Case("URL in JSON", 422, "image-is-url", json.dumps({"image": LINK}).encode, "application/json"),
    Case("file URL", 422, "image-is-url", lambda: b"file:///etc/passwd"),
    Case(
        "long parameter", 422, "invalid-parameter", form(part("model", b"m" * 70_000), part("image", JPEG)), MULTIPART
    ),
    Case("wrong method", 405, "method-not-allowed", method="GET", header=("allow", "POST")),
]


POSE = "/v1/pose"
MANY_BOXES = json.dumps([[1, 2, 30, 40]] * 10_000)
POSE_CASES = [
    *(
        Case(f"boxes: {name}", status, reason, lambda: JPEG, target=f"{POSE}?boxes={quote(text)}")
        for name, status, reason, text in (
            ("right of the picture", 422, "invalid-parameter", "64,0,10,10"),
            ("above the picture", 422, "invalid-parameter", "0,-50,20,50"),
            ("the second outside", 422, "invalid-parameter", "[[0,0,10,10],[500,0,10,10]]"),
            ("width of zero", 422, "invalid-parameter", "0,0,0,10"),
            ("negative height", 422, "invalid-parameter", "5,5,10,-10"),
            ("a millionth of a pixel", 422, "invalid-parameter", "0,0,1e-6,1e-6"),
            ("NaN", 422, "invalid-parameter", "0,0,NaN,10"),
            ("NaN in a list", 422, "invalid-parameter", "[[0,0,10,NaN]]"),
            ("Infinity", 422, "invalid-parameter", "0,0,Infinity,10"),
            ("1e999", 422, "invalid-parameter", "0,0,1e999,10"),
            ("1e300", 422, "invalid-parameter", "0,0,1e300,10"),
            ("three numbers", 422, "invalid-parameter", "0,0,10"),
            ("five numbers", 422, "invalid-parameter", "0,0,10,10,10"),
            ("text", 422, "invalid-parameter", "left"),
            ("text in a list", 422, "invalid-parameter", '[["0","0","10","10"]]'),
            ("true", 422, "invalid-parameter", "[[0,0,true,true]]"),
            ("an object", 422, "invalid-parameter", '{"x":0}'),
            ("10,000 deep", 422, "invalid-parameter", "[" * 10_000),
            ("33 of them", 413, "batch-too-large", json.dumps([[1, 2, 30, 40]] * 33)),
        )
    ),
    Case(
        "boxes: 10,000 parameters in the form",
        400,
        "bad-multipart",
        form(part("image", JPEG), *[part("boxes", b"1,2,30,40")] * 10_000),
        MULTIPART,
        POSE,
    ),
    Case(
        "boxes: 10,000 in a part",
        422,
        "invalid-parameter",
        form(part("image", JPEG), part("boxes", MANY_BOXES.encode())),
        MULTIPART,
        POSE,
    ),
    Case(
        "boxes: 4,000 in a part",
        413,
        "batch-too-large",
        form(part("image", JPEG), part("boxes", MANY_BOXES[: 15 * 4000 - 1].encode() + b"]")),
        MULTIPART,
        POSE,
    ),
    Case(
        "boxes: in the URL, 10,000", 431, "headers-too-large", lambda: JPEG, target=f"{POSE}?boxes={quote(MANY_BOXES)}"
    ),
    Case("a classifier for a pose", 422, "wrong-task", lambda: JPEG, target=f"{POSE}?model=random"),
    Case("a pose model for a class", 422, "wrong-task", lambda: JPEG, target="/v1/classify?model=dots"),
    Case("unknown format", 422, "invalid-parameter", lambda: JPEG, target=f"{POSE}?format=xml"),
    Case("flip of maybe", 422, "invalid-parameter", lambda: JPEG, target=f"{POSE}?flip=maybe"),
    Case("visualize of maybe", 422, "invalid-parameter", lambda: JPEG, target=f"{POSE}?visualize=maybe"),
    Case("negative image_id", 422, "invalid-parameter", lambda: JPEG, target=f"{POSE}?image_id=-1"),
    *(
        Case(
            f"pose batch: {name}",
            status,
            reason,
            form(part("image", JPEG), part("image", JPEG), part("boxes", text)),
            MULTIPART,
            f"{POSE}/batch",
        )
        for name, status, reason, text in (
            ("boxes for one picture of two", 422, "invalid-parameter", b"[[[0,0,10,10]]]"),
            ("boxes that are no JSON", 422, "invalid-parameter", b"0,0,10,10"),
            ("boxes of NaN", 422, "invalid-parameter", b"[[[0,0,10,NaN]],null]"),
            ("boxes without a size", 422, "invalid-parameter", b"[null,[[0,0,0,0]]]"),
            ("40 people", 413, "batch-too-large", json.dumps([[[0, 0, 10, 10]] * 20] * 2).encode()),
        )
    ),
]

BATCH_CASES = [
    *(each for route in ROUTES for each in batch_cases(f"{route}/batch")),
    Case("batch with top_k of 0", 422, "invalid-parameter", form(part("image", JPEG)), MULTIPART, BATCH + "?top_k=0"),
]

CASES = [
    *V2_CASES,
    *BATCH_CASES,
    *POSE_CASES,
    *(
        replace(case, name=f"{route}: {case.name}", target=route + case.target)
        for route in ROUTES
        for case in PICTURE_CASES
    ),
    Case("card of an unknown model", 404, "unknown-model", target="/v1/models/nobody", method="GET"),
    Case("card of dots", 404, "not-found", target="/v1/models/..%2f..%2fetc%2fpasswd", method="GET"),
    Case("card of NUL", 404, "unknown-model", target="/v1/models/%00", method="GET"),
    Case("card of 10,000 characters", 404, "unknown-model", target="/v1/models/" + "m" * 10_000, method="GET"),
    Case("top_k of -1", 422, "invalid-parameter", lambda: JPEG, target="/v1/classify?top_k=-1"),
    Case("top_k of 0", 422, "invalid-parameter", lambda: JPEG, target="/v1/classify?top_k=0"),
    Case("top_k of 1e9", 422, "invalid-parameter", lambda: JPEG, target="/v1/classify?top_k=1e9"),
    Case("top_k of a thousand million", 422, "invalid-parameter", lambda: JPEG, target="/v1/classify?top_k=1000000000"),
    Case("top_k of abc", 422, "invalid-parameter", lambda: JPEG, target="/v1/classify?top_k=abc"),
    Case("top_k of NaN", 422, "invalid-parameter", lambda: JPEG, target="/v1/classify?top_k=NaN"),
    Case(
        "top_k of abc in the form",
        422,
        "invalid-parameter",
        form(part("image", JPEG), part("top_k", b"abc")),
        MULTIPART,
        "/v1/classify",
    ),
    Case("wrong method for a model", 405, "method-not-allowed", target="/v1/models/random", header=("allow", "GET")),
    Case("unknown path", 404, "not-found", target="/v1/nothing", method="GET"),
    Case("path above the root", 404, "not-found", target="/../../etc/passwd", method="GET"),
    Case("trailing slash", 404, "not-found", target="/v1/models/", method="GET"),
]


@pytest.fixture(scope="module")
def impatient(zoo: Path) -> Iterator[Server]:
    """A service that gives headers and bodies a second to arrive."""
    running = Server(zoo, body_timeout_s=1, header_timeout_s=1)
    yield running
    running.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_gets_its_answer(server: Server, case: Case) -> None:
    before = server.metric("signet_rejected_total", reason=case.reason)
    headers = [*case.headers, *([("Content-Type", case.content_type)] if case.method == "POST" else [])]
    message = request(case.method, case.target, headers, case.body())
    server.exchange(message)
    memory = server.rss_bytes
    for _ in range(3):
        reply = server.exchange(message)
    grown = server.rss_bytes - memory

    assert reply.status == case.status, reply.body
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert problem["status"] == case.status
    assert problem["type"] == f"urn:signet:problem:{case.reason}"
    assert problem["title"]
    assert problem["detail"]
    assert problem["error"]
    assert problem["request_id"] == reply.headers["x-request-id"]
    assert len(reply.body) < 2000
    if case.header is not None:
        assert reply.headers[case.header[0]] == case.header[1]
    eventually(lambda: server.metric("signet_rejected_total", reason=case.reason) == before + 4)
    assert grown < MEMORY_SLACK_BYTES
    assert server.classify(JPEG).status_code == 200


def test_a_declared_length_above_the_limit_is_refused_unread(server: Server) -> None:
    reply = server.exchange(request(headers=[("Content-Type", "image/jpeg")], length=1 << 40))
    assert reply.status == 413
    assert reply.headers["connection"] == "close"
    assert reply.json()["type"].endswith("body-too-large")


def test_expect_continue_is_not_encouraged_beyond_the_limit(server: Server) -> None:
    reply = server.exchange(request(headers=[("Expect", "100-continue")], length=1 << 30))
    assert reply.status == 413


def test_a_chunked_body_above_the_limit_is_cut_off(server: Server) -> None:
    head = request(headers=[("Transfer-Encoding", "chunked"), ("Content-Type", "image/jpeg")], length=-1)
    memory = server.rss_bytes
    with server.connection() as sock:
        sock.sendall(head)
        piece = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
        for _ in range(5):
            sock.sendall(piece)
        reply = read_reply(sock)
        assert reply.status == 413
        assert reply.headers["connection"] == "close"
        sock.settimeout(5)
        assert sock.recv(1) == b""
    assert server.rss_bytes - memory < MEMORY_SLACK_BYTES
    assert server.classify(JPEG).status_code == 200


def test_a_body_that_stops_arriving_gets_408(impatient: Server) -> None:
    reply = impatient.exchange(request(body=JPEG[:1000], length=len(JPEG)))
    assert reply.status == 408
    assert reply.headers["connection"] == "close"
    assert reply.json()["type"].endswith("timeout")


def test_a_body_that_ends_early_gets_400(server: Server) -> None:
    reply = server.exchange(request(body=JPEG[:1000], length=len(JPEG)), half_close=True)
    assert reply.status == 400
    assert reply.json()["type"].endswith("bad-request")


def test_headers_that_stop_arriving_get_408_and_harm_nobody(impatient: Server) -> None:
    with impatient.connection() as slow:
        slow.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: sig")
        assert impatient.classify(JPEG).status_code == 200
        assert read_reply(slow).status == 408


def test_a_connection_without_a_request_is_closed_in_silence(impatient: Server) -> None:
    with impatient.connection() as idle:
        assert idle.recv(1) == b""


@pytest.mark.parametrize(
    "message",
    [
        request(headers=[(f"X-{index}", "y" * 1000) for index in range(100)]),
        request("GET", "/" + "x" * 60_000),
        b"GET / HTTP/1.1\r\nX-Endless: " + b"y" * 400_000,
    ],
    ids=["many headers", "long target", "endless header"],
)
def test_a_head_beyond_its_limit_gets_431(server: Server, message: bytes) -> None:
    reply = server.exchange(message)
    assert reply.status == 431
    assert reply.json()["request_id"] == reply.headers["x-request-id"]


@pytest.mark.parametrize(
    "message",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60) + b"\r\n\r\n",
        request(headers=[("Transfer-Encoding", "chunked")], body=JPEG),
        request(headers=[("Content-Length", "12")], body=JPEG),
        request(length=-1, headers=[("Content-Length", "-5")]),
    ],
    ids=["TLS hello", "length and chunked", "two lengths", "negative length"],
)
def test_what_is_not_sound_http_gets_400(server: Server, message: bytes) -> None:
    reply = server.exchange(message)
    assert reply.status == 400
    assert reply.headers["content-type"] == "application/problem+json"


H2C = [("Connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA")]


def test_an_offer_to_upgrade_is_not_taken_up(server: Server) -> None:
    """Java's client makes one with each request; what follows the head is the body, whatever it looks like."""
    assert server.exchange(request(headers=H2C, body=JPEG)).status == 200
    with server.connection() as sock:
        for _ in range(2):
            head = request(headers=H2C, length=len(JPEG))
            sock.sendall(head)
            time.sleep(0.1)
            sock.sendall(JPEG)
            assert read_reply(sock).status == 200
        sock.sendall(request("GET", "/livez", headers=[("Connection", "Upgrade"), ("Upgrade", "websocket")]))
        assert read_reply(sock).status == 200


@pytest.mark.parametrize("behind", [b"", request("GET", "/livez")], ids=["in pieces", "behind another request"])
def test_an_offer_that_cannot_be_left_out_is_refused(server: Server, behind: bytes) -> None:
    head = request(headers=H2C, length=len(JPEG))
    cut = len(head) if behind else head.index(b"h2c")
    with server.connection() as sock:
        sock.sendall(behind + head[:cut])
        time.sleep(0.1)
        sock.sendall(head[cut:] + request("GET", "/livez"))
        reply = read_reply(sock)
        assert reply.status == 400
        assert "upgrade" in reply.json()["detail"]
        assert sock.recv(1) == b"", "nothing that follows is taken for a request"


def test_a_request_behind_a_large_body_has_the_whole_limit_for_its_head(server: Server) -> None:
    body = JPEG + bytes(60_000)
    second = request("GET", "/livez")
    with server.connection() as sock:
        sock.sendall(request(body=body) + second[:10])
        assert read_reply(sock).status == 200
        sock.sendall(second[10:])
        assert read_reply(sock).status == 200


def test_a_client_that_does_not_take_its_answer_is_cut_off(zoo: Path) -> None:
    running = Server(zoo, send_timeout_s=1)
    try:
        pixels = np.random.default_rng(0).integers(0, 256, (1600, 1600, 3), dtype=np.uint8)
        large = pictures.encoded(Image.fromarray(pixels), "JPEG", quality=50)  # drawn, as a PNG, it has 7.7 MB
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(20)
            sock.connect(("127.0.0.1", running.port))
            sock.sendall(request("POST", "/v1/pose?visualize=true", body=large))
            eventually(lambda: running.metric("signet_rejected_total", reason="answer-not-taken") == 1)
            received = 0
            with contextlib.suppress(ConnectionError):
                while piece := sock.recv(1 << 20):
                    received += len(piece)
        taken = running.client.post("/v1/pose?visualize=true", content=large)
        assert taken.status_code == 200
        assert received < len(taken.content)
    finally:
        running.close()


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\0b.jpg", "x" * 3000, "C:\\\\a.jpg", "\u732b.jpg"])
def test_file_names_are_not_used(server: Server, name: str) -> None:
    body = multipart([part("image", JPEG, filename=name)])
    reply = server.exchange(request(headers=[("Content-Type", MULTIPART)], body=body))
    assert reply.status == 200, reply.body


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("1 x 1", pictures.png(1, 1)),
        ("1 x 65,500 JPEG", pictures.encoded(Image.new("RGB", (1, 65_500), (9, 99, 199)), "JPEG")),
        ("65,500 x 1 PNG", pictures.png(1, 65_500)),
        ("5,000 x 5,000 of one bit", pictures.encoded(Image.new("1", (5000, 5000)), "PNG")),
        ("9,000 x 9,000 JPEG", pictures.encoded(Image.new("L", (9000, 9000), 99), "JPEG")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("task", ["classify", "pose"])
def test_odd_shapes_are_answered_in_flat_memory(server: Server, name: str, data: bytes, task: str) -> None:
    ask = server.classify if task == "classify" else server.pose
    ask(data)
    memory = server.rss_bytes
    for _ in range(3):
        reply = ask(data)
        assert reply.status_code == 200, name
    width, height = Image.open(io.BytesIO(data)).size
    assert reply.json()["image"] == {"width": width, "height": height}
    assert server.rss_bytes - memory < MEMORY_SLACK_BYTES


@pytest.mark.parametrize("size", [(1, 1), (1, 65_500), (65_500, 1), (5000, 5000)])
def test_odd_shapes_are_drawn_in_flat_memory(server: Server, size: tuple[int, int]) -> None:
    data = pictures.encoded(Image.new("L", size, 99), "PNG")
    boxes = json.dumps([[0, 0, 1e6, 1e6], [1 - 1e6, 1 - 1e6, 1e6, 1e6], [0, 0, 1, 1]])
    for _ in range(2):
        server.pose(data, boxes=boxes, visualize="true")
    memory = server.rss_bytes
    for _ in range(3):
        reply = server.pose(data, boxes=boxes, visualize="true")
        assert reply.headers["content-type"] == "image/png", reply.text
    assert max(Image.open(io.BytesIO(reply.content)).size) <= 1600
    assert server.rss_bytes - memory < MEMORY_SLACK_BYTES


def _sixteen_bits() -> bytes:
    rows = pictures.flat_rows(b"\xff\xff\x00\x00\x00\x00", 32, 32)
    return pictures.raw_png(rows, 32, 32, depth=16, colour=2)


def _palette() -> bytes:
    rows, colours = pictures.flat_rows(b"\1", 32, 32), pictures.chunk(b"PLTE", b"\0\xff\0\xff\0\0")
    return pictures.raw_png(rows, 32, 32, depth=8, colour=3, before=colours)


@pytest.mark.parametrize(
    ("data", "rgb"),
    [
        (pictures.encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=95), (1, 0, 0)),
        (_sixteen_bits(), (1, 0, 0)),
        (_palette(), (1, 0, 0)),
        (pictures.flat_png(b"\0\0\xff\x80", colour=6), (0.5, 0.5, 1)),  # over white, as documented
        (pictures.flat_png(b"\x80", colour=0), (0.5, 0.5, 0.5)),
    ],
    ids=["CMYK", "16 bits", "palette", "alpha", "grey"],
)
def test_colours_are_right_in_every_kind_of_file(server: Server, data: bytes, rgb: tuple[float, ...]) -> None:
    """The model's logits are ten times the mean of each colour; scores of pairs tell their differences."""
    answer = server.classify(data, model="colour").json()["predictions"]
    scores = {entry["label"]: entry["score"] for entry in answer}
    weights = [math.exp(10 * value) for value in rgb]
    for name, weight in zip(("red", "green", "blue"), weights, strict=True):
        assert scores[name] == pytest.approx(weight / sum(weights), abs=0.02)


def test_json_as_deep_as_is_accepted(server: Server) -> None:
    deep = b'{"a":' * 198 + b"1" + b"}" * 198
    sound = inputs(tensor(), parameters="?")().replace(b'"?"', deep)
    reply = server.exchange(request("POST", INFER, (), sound))
    assert reply.status == 200, reply.body


def test_a_model_that_failed_is_told_with_503_and_when_to_ask_again(tmp_path: Path, zoo: Path) -> None:
    for name, size in (("good", None), ("bad", 5000)):
        path = tmp_path / name / "1" / "model.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes((zoo / "random" / "1" / "model.safetensors").read_bytes()[:size])
    running = Server(tmp_path, default_model="bad")
    try:
        for target in ("/v1/classify", "/v1/classify?model=bad", "/v2/models/bad/infer"):
            reply = running.exchange(request(target=target, body=JPEG))
            assert reply.status == 503, target
            assert int(reply.headers["retry-after"]) >= 1
            assert reply.json()["type"] == "urn:signet:problem:model-unavailable"
        assert running.exchange(request("GET", "/readyz")).status == 503
        assert running.classify(JPEG, model="good").status_code == 200
    finally:
        running.close()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_is_its_first_frame(server: Server, kind: str) -> None:
    reply = server.classify(pictures.animation(kind, (255, 0, 0), (0, 0, 255)), model="colour", top_k=1)
    assert reply.json()["predictions"][0]["label"] == "red"


def test_gzip_and_deflate_bodies_are_accepted(server: Server) -> None:
    plain = server.classify(JPEG).json()["predictions"]
    for encoding, body in (("gzip", gzip.compress(JPEG)), ("deflate", zlib.compress(JPEG))):
        reply = server.client.post("/v1/classify", content=body, headers={"Content-Encoding": encoding})
        assert reply.json()["predictions"] == plain


def test_memory_is_flat_over_all_cases(server: Server) -> None:
    messages = [request(c.method, c.target, c.headers, c.body()) for c in CASES if c.status in (413, 422)]
    for message in messages:
        server.exchange(message)
    memory = server.rss_bytes
    for message in messages:
        assert server.exchange(message).status < 500
    assert server.rss_bytes - memory < MEMORY_SLACK_BYTES
    assert server.metric("signet_in_flight") == 1  # the scrape itself
    assert server.metric("signet_queue_images") == 0
