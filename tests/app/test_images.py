"""Decoding and resizing against colours and shapes known beforehand."""

from __future__ import annotations

import contextlib
import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.containers import inspect
from app.errors import Problem, ServiceError
from app.images import decode, longest_side_px, prepare
from models.packing.file import InputSpec, Resize
from tests.helpers import pictures

LIMIT_PX = 1_000_000


def colour_of(data: bytes) -> tuple[int, int, int]:
    """The one colour of a decoded flat picture."""
    pixels = np.asarray(decode(data, max_pixels=LIMIT_PX).image)
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    assert (pixels == pixels[0, 0]).all()
    red, green, blue = (int(channel) for channel in pixels[0, 0])
    return red, green, blue


def spec(height: int, width: int, mode: Any = "crop", short: int | None = None, how: Any = "bilinear") -> InputSpec:
    rule = Resize(mode=mode, short_side_px=short, interpolation=how)
    return InputSpec(height=height, width=width, mean=(0.1, 0.5, 0.9), std=(1, 1, 1), resize=rule)


def over_white(colour: tuple[int, ...], alpha: int) -> list[float]:
    return [channel * alpha / 255 + 255 * (1 - alpha / 255) for channel in colour]


@pytest.mark.parametrize("cmyk", [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 255, 0), (30, 90, 200, 40), (0, 0, 0, 255)])
def test_cmyk_jpeg(cmyk: tuple[int, int, int, int]) -> None:
    data = pictures.encoded(Image.new("CMYK", (32, 32), cmyk), "JPEG", quality=100, subsampling=0)
    *inks, black = cmyk
    expected = [255 * (1 - ink / 255) * (1 - black / 255) for ink in inks]
    assert colour_of(data) == pytest.approx(expected, abs=3)


@pytest.mark.parametrize("sample", [0, 1, 128, 129, 256, 32767, 32768, 40000, 65407, 65535])
def test_sixteen_bit_grey_is_scaled(sample: int) -> None:
    data = pictures.flat_png(struct.pack(">H", sample), depth=16, colour=0)
    assert colour_of(data) == (round(sample * 255 / 65535),) * 3


@pytest.mark.parametrize("rgb", [(0, 32768, 65535), (1000, 20000, 50000)])
def test_sixteen_bit_colour(rgb: tuple[int, int, int]) -> None:
    data = pictures.flat_png(struct.pack(">HHH", *rgb), depth=16, colour=2)
    assert colour_of(data) == pytest.approx([sample * 255 / 65535 for sample in rgb], abs=1)


def test_sixteen_bit_grey_with_a_transparent_value_is_white_there() -> None:
    transparent = pictures.chunk(b"tRNS", struct.pack(">H", 1234))
    assert colour_of(pictures.flat_png(struct.pack(">H", 1234), depth=16, colour=0, before=transparent)) == (255,) * 3


def test_sixteen_bit_grey_with_alpha() -> None:
    data = pictures.flat_png(struct.pack(">HH", 20000, 30000), depth=16, colour=4)
    grey, alpha = 20000 / 65535, 30000 / 65535
    assert colour_of(data) == pytest.approx([255 * (grey * alpha + 1 - alpha)] * 3, abs=2)


@pytest.mark.parametrize("alpha", [0, 1, 77, 128, 254, 255])
def test_alpha_is_laid_over_white(alpha: int) -> None:
    data = pictures.flat_png(bytes((200, 40, 90, alpha)), colour=6)
    assert colour_of(data) == pytest.approx(over_white((200, 40, 90), alpha), abs=1)


@pytest.mark.parametrize("alpha", [0, 100, 255])
def test_grey_with_alpha(alpha: int) -> None:
    data = pictures.flat_png(bytes((60, alpha)), colour=4)
    assert colour_of(data) == pytest.approx(over_white((60, 60, 60), alpha), abs=1)


def test_transparent_colour_of_an_opaque_file_is_white() -> None:
    transparent = pictures.chunk(b"tRNS", struct.pack(">HHH", 10, 20, 30))
    assert colour_of(pictures.flat_png(bytes((10, 20, 30)), before=transparent)) == (255, 255, 255)
    assert colour_of(pictures.flat_png(bytes((10, 20, 31)), before=transparent)) == (10, 20, 31)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_transparent_grey_of_few_bits_is_white(depth: int) -> None:
    for sample in range(2**depth):
        row = bytes([int(f"{sample:0{depth}b}" * (8 // depth), 2)]) * (32 * depth // 8)
        for other in range(2**depth):
            transparent = pictures.chunk(b"tRNS", struct.pack(">H", other))
            data = pictures.raw_png((b"\x00" + row) * 32, 32, 32, depth=depth, colour=0, before=transparent)
            assert colour_of(data)[0] == (255 if other == sample else sample * 255 // (2**depth - 1))


def test_transparent_colour_of_sixteen_bits_is_white() -> None:
    transparent = pictures.chunk(b"tRNS", struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC))
    for colour, seen in (((0x1234, 0x5678, 0x9ABC), (255,) * 3), ((0x3434, 0x7878, 0xBCBC), (0x34, 0x78, 0xBC))):
        assert colour_of(pictures.flat_png(struct.pack(">HHH", *colour), depth=16, before=transparent)) == seen


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette(depth: int) -> None:
    palette = pictures.chunk(b"PLTE", bytes((1, 2, 3, 250, 120, 60)))
    index_1 = {1: 0xFF, 2: 0x55, 4: 0x11, 8: 0x01}[depth]
    rows = (b"\x00" + bytes([index_1]) * (32 * depth // 8)) * 32
    data = pictures.raw_png(rows, 32, 32, depth=depth, colour=3, before=palette)
    assert colour_of(data) == (250, 120, 60)


def test_palette_with_alpha() -> None:
    palette = pictures.chunk(b"PLTE", bytes((1, 2, 3, 250, 120, 60))) + pictures.chunk(b"tRNS", bytes((255, 51)))
    data = pictures.flat_png(b"\x01", colour=3, before=palette)
    assert colour_of(data) == pytest.approx(over_white((250, 120, 60), 51), abs=1)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_grey_of_few_bits_spans_the_whole_range(depth: int) -> None:
    rows = (b"\x00" + b"\xff" * (32 * depth // 8)) * 32
    assert colour_of(pictures.raw_png(rows, 32, 32, depth=depth, colour=0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_grey_files(kind: str) -> None:
    assert colour_of(pictures.encoded(Image.new("L", (32, 32), 77), kind)) == pytest.approx((77, 77, 77), abs=2)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_undone(kind: str, orientation: int) -> None:
    upright = np.asarray(Image.fromarray(pictures.random_pixels(40, 72)))
    found = decode(pictures.oriented(upright, orientation, kind), max_pixels=LIMIT_PX)
    assert (found.width, found.height) == (72, 40)
    difference = np.abs(np.asarray(found.image).astype(int) - upright)
    assert difference.max() <= (0 if kind != "JPEG" else 24)
    assert difference.mean() < 2


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_senseless_orientations_are_ignored(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    data = pictures.encoded(Image.fromarray(pictures.random_pixels()), "PNG", exif=exif)
    assert np.array_equal(np.asarray(decode(data, max_pixels=LIMIT_PX).image), pictures.random_pixels())


@pytest.mark.parametrize("progressive", [False, True])
def test_a_video_behind_a_jpeg_is_left_out(progressive: bool) -> None:
    """Its bytes look like more scans than a JPEG may have."""
    data = pictures.jpeg(progressive=progressive)
    video = np.random.default_rng(0).bytes(1000) + b"\xff\xda" * 1000
    assert inspect(data + video, "JPEG").data == inspect(data, "JPEG").data
    assert np.array_equal(decode(data + video, max_pixels=LIMIT_PX).image, decode(data, max_pixels=LIMIT_PX).image)


def test_metadata_never_reaches_the_decoder() -> None:
    """An EXIF block of 60 kB whose entries claim 300 MB between them."""
    found = decode(pictures.jpeg(40, 72, exif=pictures.exif_of_greedy_entries()), max_pixels=LIMIT_PX)
    assert (found.width, found.height) == (40, 72)  # turned, so it was read
    assert not {"exif", "icc_profile", "comment"} & set(found.image.info)


def test_a_baseline_jpeg_may_be_larger_as_it_is_decoded_small() -> None:
    data = pictures.jpeg(1000, 1000)
    assert decode(data, max_pixels=250_000, needed_px=32).image.width < 500
    for wrong in ({"max_pixels": 249_999, "needed_px": 32}, {"max_pixels": 250_000}):
        with pytest.raises(ServiceError):
            decode(data, **wrong)
    with pytest.raises(ServiceError):
        decode(pictures.jpeg(1000, 1000, progressive=True), max_pixels=250_000, needed_px=32)


def test_a_damaged_exif_block_does_not_spoil_the_picture() -> None:
    data = pictures.jpeg(exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff" + bytes(20))
    assert decode(data, max_pixels=LIMIT_PX).width == 64


@pytest.mark.parametrize(("height", "width"), [(32, 32), (31, 33), (480, 641), (33, 2000), (1, 300), (20, 24)])
@pytest.mark.parametrize(("target", "short"), [((32, 32), None), ((32, 32), 40), ((24, 32), None), ((24, 32), 36)])
@pytest.mark.parametrize("how", ["bilinear", "bicubic", "lanczos"])
def test_crop_equals_resizing_the_whole_and_cutting(
    height: int, width: int, target: tuple[int, int], short: int | None, how: str
) -> None:
    image = Image.fromarray(pictures.random_pixels(height, width))
    scale = max((short or 0) / min(height, width), target[0] / height, target[1] / width)
    whole_size = max(target[1], int(width * scale + 1e-6)), max(target[0], int(height * scale + 1e-6))
    whole = image.resize(whole_size, getattr(Image.Resampling, how.upper()))
    left, top = round((whole.width - target[1]) / 2), round((whole.height - target[0]) / 2)
    expected = whole.crop((left, top, left + target[1], top + target[0]))
    found = prepare(image, spec(*target, short=short, how=how))
    assert found.shape == (*target, 3)
    assert found.dtype == np.uint8
    # Pillow keeps the box in float32, and a value halfway between two levels may round the other way in both passes.
    assert np.abs(found.astype(int) - np.asarray(expected)).max() <= 2


def test_a_picture_of_the_inputs_size_is_taken_as_it_is() -> None:
    pixels = pictures.random_pixels(32, 32)
    for mode in ("crop", "stretch", "letterbox"):
        assert np.array_equal(prepare(Image.fromarray(pixels), spec(32, 32, mode)), pixels)


def test_letterbox_fits_the_picture_between_bars_of_the_mean_colour() -> None:
    found = prepare(Image.new("RGB", (200, 100), (10, 200, 30)), spec(64, 64, "letterbox"))
    assert (found[16:48] == (10, 200, 30)).all()
    bars = np.concatenate((found[:16], found[48:]))
    assert (bars == [round(255 * mean) for mean in (0.1, 0.5, 0.9)]).all()


def test_stretch_keeps_left_left_and_top_top() -> None:
    pixels = np.zeros((50, 200, 3), np.uint8)
    pixels[:25, :100] = 255
    found = prepare(Image.fromarray(pixels), spec(32, 32, "stretch"))
    assert (found[:14, :14] == 255).all()
    assert not found[18:].any()
    assert not found[:, 18:].any()


@pytest.mark.parametrize("mode", ["crop", "stretch", "letterbox"])
def test_extreme_shapes_become_the_input(mode: str) -> None:
    for size in ((1, 1), (1, 20_000), (20_000, 1)):
        found = prepare(Image.new("RGB", size, (7, 8, 9)), spec(32, 48, mode))
        assert found.shape == (32, 48, 3)


def test_large_jpegs_are_decoded_small_with_nearly_the_same_result() -> None:
    data = pictures.jpeg(1200, 1600)
    wanted = spec(64, 64)
    small = decode(data, max_pixels=2_000_000, needed_px=longest_side_px(wanted))
    assert (small.width, small.height) == (1600, 1200)
    assert min(small.image.size) >= 128
    assert small.image.width < 1600
    whole = decode(data, max_pixels=2_000_000)
    assert whole.image.size == (1600, 1200)
    difference = prepare(small.image, wanted).astype(int) - prepare(whole.image, wanted)
    assert np.abs(difference).mean() < 1.5


def test_the_limit_on_pixels_is_inclusive() -> None:
    data = pictures.png(100, 100)
    assert decode(data, max_pixels=10_000).width == 100
    with pytest.raises(ServiceError) as refused:
        decode(data, max_pixels=9_999)
    assert refused.value.problem is Problem.TOO_MANY_PIXELS


@pytest.mark.parametrize("make", [pictures.jpeg, pictures.png, pictures.webp])
def test_no_cut_or_flipped_byte_raises_anything_else(make: Any) -> None:
    data = make()
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(data[: rng.integers(1, len(data))] if rng.random() < 0.5 else data)
        for position in rng.integers(0, len(damaged), 3):
            damaged[position] = rng.integers(0, 256)
        with contextlib.suppress(ServiceError):
            decode(bytes(damaged), max_pixels=LIMIT_PX)


def test_a_picture_read_from_memory_equals_the_plain_decoder() -> None:
    data = pictures.jpeg()
    plain = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(np.asarray(decode(data, max_pixels=LIMIT_PX).image), plain)
