"""Pictures good and bad, most of them written byte by byte, so that no decoder under test had a hand in them."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def chunk(name: bytes, data: bytes, *, broken: bool = False) -> bytes:
    checksum = zlib.crc32(name + data) ^ (1 if broken else 0)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


def raw_png(
    rows: bytes,
    width: int,
    height: int,
    *,
    depth: int,
    colour: int,
    before: bytes = b"",
    after: bytes = b"",
    broken: bool = False,
) -> bytes:
    """A PNG from its scan lines (each with its filter byte); `before` and `after` are chunks around the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join(
        (
            PNG_MAGIC,
            chunk(b"IHDR", header),
            before,
            chunk(b"IDAT", zlib.compress(rows), broken=broken),
            after,
            chunk(b"IEND", b""),
        )
    )


def flat_rows(pixel: bytes, width: int, height: int) -> bytes:
    return (b"\x00" + pixel * width) * height


def flat_png(pixel: bytes, *, depth: int = 8, colour: int = 2, side_px: int = 32, before: bytes = b"") -> bytes:
    """A square of one colour; `pixel` is one pixel's samples as the file stores them."""
    return raw_png(flat_rows(pixel, side_px, side_px), side_px, side_px, depth=depth, colour=colour, before=before)


def random_pixels(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray[Any, Any]:
    """Smooth colourful noise, uint8 `[height, width, 3]`."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(height: int = 48, width: int = 64, seed: int = 0, **options: Any) -> bytes:
    return encoded(Image.fromarray(random_pixels(height, width, seed)), "JPEG", **{"quality": 90, **options})


def png(height: int = 48, width: int = 64, seed: int = 0) -> bytes:
    return encoded(Image.fromarray(random_pixels(height, width, seed)), "PNG")


def webp(height: int = 48, width: int = 64, seed: int = 0) -> bytes:
    return encoded(Image.fromarray(random_pixels(height, width, seed)), "WEBP", lossless=True)


@cache
def pixel_bomb(side_px: int = 50_000) -> bytes:
    """A PNG of `side_px` squared pixels in a few kilobytes: one bit a pixel, a stretch of it, deflated."""
    return raw_png(bytes(1 << 20), side_px, side_px, depth=1, colour=0)


@cache
def text_bomb(megabytes: int = 200) -> bytes:
    """A small PNG with a comment (zTXt) that inflates to `megabytes`."""
    squeezed = zlib.compress(bytes(megabytes << 20), 9)
    before = chunk(b"zTXt", b"Comment\x00\x00" + squeezed)
    return flat_png(b"\x10\x20\x30", before=before)


@cache
def profile_bomb(megabytes: int = 200) -> bytes:
    """A small PNG with a colour profile (iCCP) that inflates to `megabytes`."""
    squeezed = zlib.compress(bytes(megabytes << 20), 9)
    return flat_png(b"\x10\x20\x30", before=chunk(b"iCCP", b"profile\x00\x00" + squeezed))


@cache
def international_bomb(megabytes: int = 200) -> bytes:
    """A small PNG with a compressed iTXt comment that inflates to `megabytes`."""
    squeezed = zlib.compress(bytes(megabytes << 20), 9)
    return flat_png(b"\x10\x20\x30", before=chunk(b"iTXt", b"Comment\0\1\0en\0Remark\0" + squeezed))


@cache
def many_chunks(count: int = 100_000) -> bytes:
    """A small PNG with very many empty comments."""
    return flat_png(b"\x10\x20\x30", before=chunk(b"tEXt", b"a\0") * count)


def resized_jpeg(data: bytes, side_px: int) -> bytes:
    """The same JPEG, claiming another size in its frame header."""
    frame = data.index(b"\xff\xc0")
    return data[: frame + 5] + struct.pack(">HH", side_px, side_px) + data[frame + 9 :]


def resized_webp(lossless: bytes, side_px: int) -> bytes:
    """The same lossless WebP, claiming another size."""
    assert lossless[12:16] == b"VP8L"
    bits = struct.unpack_from("<I", lossless, 21)[0] & ~0xFFFFFFF | (side_px - 1) | (side_px - 1) << 14
    return lossless[:21] + struct.pack("<I", bits) + lossless[25:]


def exif_of_greedy_entries(entries: int = 5000) -> bytes:
    """An EXIF block whose every entry claims all of it, with the orientation last."""
    size = 10 + 12 * entries
    table = [struct.pack("<HHII", 0x9000 + index, 7, size, 0) for index in range(entries - 1)]
    table.append(struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, entries) + b"".join(table) + bytes(4)


def stored(upright: np.ndarray[Any, Any], orientation: int) -> np.ndarray[Any, Any]:
    """How a camera stores an upright picture under an EXIF orientation.

    The EXIF standard says for each value which visual side the stored row 0 and column 0 are.
    """
    row_0, column_0 = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]
    pixels = upright if row_0 in ("top", "bottom") else upright.transpose(1, 0, 2)
    if row_0 in ("bottom", "right"):
        pixels = pixels[::-1]
    if column_0 in ("right", "bottom"):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def oriented(upright: np.ndarray[Any, Any], orientation: int, kind: str = "PNG") -> bytes:
    """An encoded picture with an EXIF orientation whose upright pixels are `upright`."""
    image = Image.fromarray(stored(upright, orientation))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    return encoded(image, kind, exif=exif, **options)


def animation(kind: str, first: tuple[int, int, int], second: tuple[int, int, int]) -> bytes:
    """Two frames of one colour each."""
    frames = [Image.new("RGB", (32, 32), colour) for colour in (first, second)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, **_lossless(kind))


def _lossless(kind: str) -> dict[str, Any]:
    return {"lossless": True} if kind == "WEBP" else {}
