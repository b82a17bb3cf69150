"""What a picture's file says before anything is decoded, and the file without what decoding does not need.

Metadata is where image libraries get hurt: comments that inflate to gigabytes, directories of thousands of entries that
each claim the whole file, millions of empty segments. None of it changes a pixel except the EXIF orientation. So JPEG
segments and PNG chunks are walked here, with bounds on their number, their checksums and what they inflate to; size and
orientation are read, and the decoder sees only what makes pixels.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from app.errors import Problem, ServiceError

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
MAX_PARTS = 20_000
"""Segments or chunks of a file; real pictures have tens, and a few thousand where pixels come in small chunks."""
MAX_SCANS = 100
"""A progressive JPEG has about ten scans; each is a pass over the whole picture, so thousands are an attack."""
MAX_INFLATED_BYTES = 16 << 20
"""Compressed metadata of one PNG: comments and a colour profile."""

_ORIENTATION_TAG = 0x0112
_SHORT = 3
_FILL = re.compile(b"\xff+")
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_JPEG_EXIF, _JPEG_SCAN, _JPEG_COMMENT, _JPEG_END = 0xE1, 0xDA, 0xFE, 0xD9
_JPEG_MARKER = re.compile(b"\xff[\xc0-\xcf\xd8-\xfe]")
"""Those that end a scan's data; a stuffed 0xFF, restarts and fill bytes do not."""
_JPEG_METADATA = frozenset(range(0xE1, 0xF0)) - {0xEE} | {_JPEG_COMMENT}  # APP0 (JFIF) and APP14 (Adobe) tell colours
_JPEG_STANDALONE = frozenset(range(0xD0, 0xD8)) | {0x01}
_PNG_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})


@dataclass(frozen=True)
class Container:
    """A picture's file.

    Attributes
    ----------
    data : the file without its metadata.
    width, height : as stored, in pixels.
    orientation : EXIF, 1 (upright) to 8.
    streamed : whether the decoder needs no memory for the whole picture (a JPEG that is not progressive).
    depth : bits of a sample.
    """

    data: bytes
    width: int
    height: int
    orientation: int = 1
    streamed: bool = False
    depth: int = 8


def inspect(data: bytes, kind: str) -> Container:
    """Walk a `JPEG`, `PNG` or `WEBP` file. Raises ServiceError BROKEN_IMAGE for what is unsound or excessive."""
    try:
        return {"JPEG": _jpeg, "PNG": _png, "WEBP": _webp}[kind](data)
    except (struct.error, IndexError) as error:
        raise _broken(f"The {kind} data ends within its header.") from error


def _broken(detail: str) -> ServiceError:
    return ServiceError(Problem.BROKEN_IMAGE, detail)


def _jpeg(data: bytes) -> Container:
    view = memoryview(data)
    kept, width, height, orientation, progressive = [view[:2]], 0, 0, 1, False
    for marker, start, end in _jpeg_segments(data):
        if marker == _JPEG_SCAN:
            kept.append(view[start : _jpeg_end(data, end)])
            return Container(b"".join(kept), width, height, orientation, not progressive)
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, start + 5)
            progressive = marker in _JPEG_PROGRESSIVE
        if marker == _JPEG_EXIF and data[start + 4 : start + 10] == b"Exif\0\0" and orientation == 1:
            orientation = _orientation(data[start + 10 : end])
        if marker not in _JPEG_METADATA:
            kept.append(view[start:end])
    raise _broken("The JPEG has no pixels.")


def _jpeg_end(data: bytes, position: int) -> int:
    """Where the picture ends, from `position` behind its first scan's header: phones put a video there.

    Raises ServiceError BROKEN_IMAGE where there are too many scans on the way.
    """
    scans = 1
    while (found := _JPEG_MARKER.search(data, position)) is not None:
        marker, position = data[found.end() - 1], found.end()
        if marker == _JPEG_END:
            return position
        if marker == _JPEG_SCAN:
            scans += 1
            if scans > MAX_SCANS:
                raise _broken(f"The JPEG has more than {MAX_SCANS} scans.")
        if position + 2 > len(data):
            break
        position += int.from_bytes(data[position : position + 2])
    return len(data)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start (at the marker's 0xFF) and end of each segment up to the first scan."""
    position = 2
    for _ in range(MAX_PARTS):
        fill = _FILL.match(data, position)
        if fill is None:
            raise _broken("The JPEG's segments do not follow each other.")
        marker, start = data[fill.end()], fill.end() - 1
        position = fill.end() + 1
        if marker in _JPEG_STANDALONE:
            continue
        (length,) = struct.unpack_from(">H", data, position)
        position += length
        if length < 2 or position > len(data):
            raise _broken("A segment of the JPEG is incomplete.")
        yield marker, start, position
    raise _broken(f"The JPEG has more than {MAX_PARTS} segments.")


def _png(data: bytes) -> Container:
    view = memoryview(data)
    kept, width, height, depth, orientation, budget = [view[: len(PNG_MAGIC)]], 0, 0, 8, 1, MAX_INFLATED_BYTES
    position = len(PNG_MAGIC)
    for _ in range(MAX_PARTS):
        length, name = struct.unpack_from(">I4s", data, position)
        start, end = position, position + 12 + length
        if end > len(data):
            raise _broken("A chunk of the PNG is incomplete.")
        if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise _broken("A chunk of the PNG has a wrong checksum.")
        content = data[start + 8 : end - 4] if name not in _PNG_PIXELS else b""
        if name == b"IHDR":
            width, height, depth = struct.unpack_from(">IIB", data, start + 8)
        elif name == b"eXIf":
            orientation = _orientation(content)
        elif name in (b"zTXt", b"iCCP", b"iTXt"):
            budget = _inflated(name, content, budget)
        if name in _PNG_PIXELS:
            kept.append(view[start:end])
        if name == b"IEND":
            return Container(b"".join(kept), width, height, orientation, depth=depth)
        position = end
    raise _broken(f"The PNG has more than {MAX_PARTS} chunks.")


def _inflated(name: bytes, content: bytes, budget: int) -> int:
    """What is left of `budget` bytes after the compressed text of a chunk, which is inflated piece by piece."""
    _, _, rest = content.partition(b"\0")
    if name == b"iTXt":
        if rest[:1] != b"\x01":
            return budget
        rest = b"\0" + rest[2:].split(b"\0", 2)[-1]
    stream, pending = zlib.decompressobj(), rest[1:]
    try:
        while pending and not stream.eof:
            budget -= len(stream.decompress(pending, 1 << 16))
            if budget < 0:
                raise _broken("The PNG's metadata inflates to more than is accepted.")
            pending = stream.unconsumed_tail
    except zlib.error as error:
        raise _broken("The PNG's compressed metadata is damaged.") from error
    return budget


def _webp(data: bytes) -> Container:
    kind = data[12:16]
    if kind == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise _broken("The WebP data has no picture.")
    return Container(data, width, height, _webp_orientation(data))


def _webp_orientation(data: bytes) -> int:
    position = 12
    for _ in range(MAX_PARTS):
        name, length = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        if name == b"EXIF":
            content = data[position + 8 : position + 8 + length]
            return _orientation(content.removeprefix(b"Exif\0\0"))
        position += 8 + length + length % 2
        if position >= len(data):
            break
    return 1


def _orientation(tiff: bytes) -> int:
    """The orientation in the first directory of an EXIF block; 1 where there is none or it makes no sense."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, start)
        for index in range(entries):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * index)
            if tag == _ORIENTATION_TAG:
                return value if kind == _SHORT and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
