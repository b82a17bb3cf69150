"""The body of an upload: its content encoding undone and its parts found.

A picture comes as the part `image` of multipart/form-data, next to parts with parameters, or as the whole body with any
other content type: what it is shows in its first bytes. What a client claims about types and file names is not used.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import Problem, ServiceError

MAX_PARTS = 32
MAX_FIELD_BYTES = 64 << 10
MAX_PART_HEADERS = 8
MAX_PART_HEADER_BYTES = 8192
"""Of one line; a part's name and file name stand there."""
_REFUSED = re.compile(r"q\s*=\s*0(\.0*)?")
_QUALITY = re.compile(r"\bq\s*=\s*([01](?:\.[0-9]{1,3})?)\s*(?:;|$)")
_ZLIB_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


@dataclass(frozen=True)
class Upload:
    """A picture's bytes, and the parameters that came as parts beside it: each name's values in their order."""

    image: bytes
    fields: Mapping[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchUpload:
    """The bytes of several pictures, in the order of their parts, and the parameters beside them."""

    images: list[bytes]
    fields: Mapping[str, list[str]]


@dataclass
class _Part:
    name: bytes = b""
    data: bytearray = field(default_factory=bytearray)


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """Undo a Content-Encoding of gzip or deflate, in lower case, to at most `limit` bytes.

    Raises ServiceError UNSUPPORTED_ENCODING, BODY_TOO_LARGE or BAD_REQUEST.
    """
    window = _ZLIB_WINDOW.get(encoding)
    if window is None:
        raise ServiceError(Problem.UNSUPPORTED_ENCODING, "Content-Encoding may be gzip, deflate or identity.")
    stream = zlib.decompressobj(window)
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise ServiceError(Problem.BAD_REQUEST, f"The body is not sound {encoding} data.") from error
    if len(plain) > limit:
        raise ServiceError(Problem.BODY_TOO_LARGE, f"The decompressed body is larger than {limit} bytes.")
    if not stream.eof:
        raise ServiceError(Problem.BAD_REQUEST, f"The {encoding} body is incomplete.")
    return plain


def accepted_encoding(header: str) -> str | None:
    """The first of gzip and deflate in an Accept-Encoding header; None where it has neither."""
    for choice in header.lower().split(","):
        name, _, quality = choice.partition(";")
        if name.strip() in ("gzip", "deflate") and not _REFUSED.fullmatch(quality.strip()):
            return name.strip()
    return None


def prefers_png(header: str) -> bool:
    """Whether an Accept header names image/png, and JSON no more than that."""
    shares = {"image/png": 0.0, "application/json": 0.0}
    for choice in header.lower().split(","):
        kind, _, rest = choice.partition(";")
        if kind.strip() in shares:
            quality = _QUALITY.search(rest)
            shares[kind.strip()] = float(quality[1]) if quality else 1.0
    return 0 < shares["image/png"] >= shares["application/json"]


def deflate(body: bytes, encoding: str) -> bytes:
    """Compress an answer for a Content-Encoding of gzip or deflate; quick rather than small."""
    stream = zlib.compressobj(1, wbits=_ZLIB_WINDOW[encoding])
    return stream.compress(body) + stream.flush()


def parse(body: bytes, content_type: str) -> Upload:
    """Find the picture in a body.

    Raises ServiceError EMPTY_BODY, BAD_MULTIPART, MISSING_IMAGE or INVALID_PARAMETER.
    """
    if not body:
        raise ServiceError(Problem.EMPTY_BODY, "Send a picture: as the body, or as the multipart part 'image'.")
    media_type, options = parse_options_header(content_type)
    if media_type != b"multipart/form-data":
        return Upload(body)
    too_many = ServiceError(Problem.BAD_MULTIPART, f"There are more than {MAX_PARTS} parts.")
    images, fields = _images_and_fields(_split(body, options, MAX_PARTS, too_many))
    if len(images) > 1:
        raise ServiceError(Problem.BAD_MULTIPART, "There is more than one part named 'image'.")
    if not images:
        raise ServiceError(Problem.MISSING_IMAGE, "The multipart body has no part named 'image'.")
    return Upload(images[0], fields)


def parse_batch(body: bytes, content_type: str, max_images: int) -> BatchUpload:
    """Find the pictures in a body: every part `image` of multipart/form-data.

    Raises ServiceError EMPTY_BODY, BAD_MULTIPART, EMPTY_BATCH, BATCH_TOO_LARGE or INVALID_PARAMETER.
    """
    media_type, options = parse_options_header(content_type)
    if not body:
        raise ServiceError(Problem.EMPTY_BODY, "Send pictures as multipart parts named 'image'.")
    if media_type != b"multipart/form-data":
        raise ServiceError(Problem.BAD_MULTIPART, "Several pictures come as parts of multipart/form-data.")
    too_many = ServiceError(Problem.BATCH_TOO_LARGE, f"A batch may have at most {max_images} pictures.")
    images, fields = _images_and_fields(_split(body, options, max_images + MAX_PARTS, too_many))
    if not images:
        raise ServiceError(Problem.EMPTY_BATCH, "The multipart body has no part named 'image'.")
    if len(images) > max_images:
        raise too_many
    return BatchUpload(images, fields)


def _images_and_fields(parts: list[_Part]) -> tuple[list[bytes], dict[str, list[str]]]:
    images: list[bytes] = []
    fields: dict[str, list[str]] = {}
    for part in parts:
        if part.name == b"image":
            images.append(bytes(part.data))
            continue
        name = _text(part.name)
        if len(part.data) > MAX_FIELD_BYTES:
            raise ServiceError(Problem.INVALID_PARAMETER, f"{name[:80]}: is longer than {MAX_FIELD_BYTES} bytes.")
        fields.setdefault(name, []).append(_text(part.data))
    return images, fields


def _split(body: bytes, options: Mapping[bytes, bytes], max_parts: int, too_many: ServiceError) -> list[_Part]:
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 200:
        raise ServiceError(Problem.BAD_MULTIPART, "The Content-Type names no usable boundary.")
    parts: list[_Part] = []
    name, value = bytearray(), bytearray()
    ended = False

    def begin() -> None:
        if len(parts) == max_parts:
            raise too_many
        parts.append(_Part())

    def header_end() -> None:
        if bytes(name).lower() == b"content-disposition":
            _, options = parse_options_header(bytes(value))
            parts[-1].name = options.get(b"name", b"")
        name.clear()
        value.clear()

    def end() -> None:
        nonlocal ended
        ended = True

    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": begin,
            "on_header_field": lambda data, start, stop: name.extend(data[start:stop]),
            "on_header_value": lambda data, start, stop: value.extend(data[start:stop]),
            "on_header_end": header_end,
            "on_part_data": lambda data, start, stop: parts[-1].data.extend(memoryview(data)[start:stop]),
            "on_end": end,
        },
        max_header_count=MAX_PART_HEADERS,
        max_header_size=MAX_PART_HEADER_BYTES,
    )
    try:
        parser.write(body)
        parser.finalize()
    except MultipartParseError as error:
        raise ServiceError(Problem.BAD_MULTIPART, f"The multipart body is malformed: {error}.") from error
    if not ended:
        raise ServiceError(Problem.BAD_MULTIPART, "The multipart body ends before its closing boundary.")
    return parts


def _text(data: bytes | bytearray) -> str:
    return data.decode("utf-8", "replace")
