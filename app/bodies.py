"""The body of an upload: its content encoding undone and its parts found.

A picture comes as the part `image` of multipart/form-data, next to parts with parameters, or as the whole body with any
`image/*` type, application/octet-stream or none. What the client claims about type and file name is not used.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import Problem, ServiceError
from app.images import sniff

MAX_PARTS = 32
MAX_FIELD_BYTES = 4096
_ZLIB_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


@dataclass(frozen=True)
class Upload:
    """A picture's bytes, and the parameters that came as parts beside it."""

    image: bytes
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Part:
    name: bytes = b""
    data: bytearray = field(default_factory=bytearray)


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """Undo a Content-Encoding of gzip or deflate, to at most `limit` bytes.

    Raises ServiceError UNSUPPORTED_ENCODING, BODY_TOO_LARGE or BAD_REQUEST.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
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


def parse(body: bytes, content_type: str) -> Upload:
    """Find the picture in a body.

    Raises ServiceError EMPTY_BODY, BAD_MULTIPART, MISSING_IMAGE, UNSUPPORTED_MEDIA or IMAGE_IS_URL.
    """
    if not body:
        raise ServiceError(Problem.EMPTY_BODY, "Send a picture: as the body, or as the multipart part 'image'.")
    media_type, options = parse_options_header(content_type)
    if media_type == b"multipart/form-data":
        return _parse_multipart(body, options.get(b"boundary", b""))
    if media_type in (b"", b"application/octet-stream") or media_type.startswith(b"image/"):
        return Upload(body)
    sniff(b"" if not body.strip() else body) if _may_name_a_url(media_type) else None
    raise ServiceError(
        Problem.UNSUPPORTED_MEDIA, "Content-Type may be image/*, application/octet-stream or multipart/form-data."
    )
