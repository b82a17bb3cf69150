"""From bytes that nobody vouches for to the pixels a network takes.

`decode` checks before it spends: the kind of file by its first bytes (JPEG, PNG or WebP, whatever a header or a file
name claims), then its structure and its size in pixels (`app.containers`), and only then does it decode. `prepare`
applies the model's resize rule. Both know nothing of HTTP; `signet predict` uses them as the service does.

Colours come out as 8-bit RGB: CMYK and YCCK are converted, 16-bit samples are scaled (not cut off), transparency is
laid over white, grey is repeated. Embedded colour profiles are not applied. The EXIF orientation is: sizes and
answers speak of the upright picture. Of an animation the first frame counts.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

# Imported by name: Image.open would otherwise look for WebP among all of Pillow's forty formats.
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin  # noqa: F401

from app.containers import PNG_MAGIC, inspect
from app.errors import Problem, ServiceError
from models.packing.file import InputSpec

STREAMED_FACTOR = 4
"""A JPEG that is decoded at a reduced size, row by row, may have so many times the pixels of other pictures."""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {_UPRIGHT[value] for value in (5, 6, 7, 8)}
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# A URL, bare or as the first value of a JSON object or a form.
_URL = re.compile(
    rb'\s*(?:[\[{]\s*)?(?:"[^"]{0,64}"\s*:\s*\[?\s*|[\w-]{1,64}=)?"?(?:https?|ftp|file|s3|gs|data)(?::|%3A)', re.I
)

# Pillow warns of large pictures and of damaged metadata: nothing for a log, and what a client can write to it, it will.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes
    ----------
    image : upright, mode RGB; smaller than the original where a large JPEG was decoded at reduced size.
    width, height : of the upright original, in pixels.
    """

    image: Image.Image
    width: int
    height: int

    @property
    def reduced(self) -> int:
        """Pixels of the original, each way, that one pixel of `image` stands for: 1, 2, 4 or 8."""
        return round(max(self.width, self.height) / max(self.image.size))


def sniff(data: bytes) -> str:
    """The format by the first bytes: `JPEG`, `PNG` or `WEBP`.

    Raises ServiceError MISSING_IMAGE (no data), IMAGE_IS_URL or NOT_AN_IMAGE.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(PNG_MAGIC):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if not data:
        raise ServiceError(Problem.MISSING_IMAGE, "The picture has no bytes.")
    if _URL.match(data[:512]):
        raise ServiceError(Problem.IMAGE_IS_URL, "Send the picture's bytes; pictures are never fetched from a URL.")
    raise ServiceError(
        Problem.NOT_AN_IMAGE, "The data begins like none of JPEG, PNG and WebP; other formats are not accepted."
    )


def decode(data: bytes, *, max_pixels: int, needed_px: int | Callable[[int, int], int] | None = None) -> Picture:
    """Decode a picture of at most `max_pixels` to upright RGB.

    `needed_px` is the longer side that the picture will be resized to, or a function that finds it from the picture's
    size (which may come turned by 90 degrees): a JPEG more than twice as large is decoded at a half, quarter or eighth
    of its size, which costs a fraction. A baseline JPEG may therefore have
    `STREAMED_FACTOR` times `max_pixels`, as long as what is decoded has no more than `max_pixels`.
    Raises ServiceError NOT_AN_IMAGE, IMAGE_IS_URL, MISSING_IMAGE, TOO_MANY_PIXELS or BROKEN_IMAGE.
    """
    kind = sniff(data)
    try:
        return _decode(data, kind, max_pixels, needed_px)
    except ServiceError:
        raise
    except Image.DecompressionBombError as error:
        raise ServiceError(Problem.TOO_MANY_PIXELS, f"The picture has more than {max_pixels} pixels.") from error
    except Exception as error:
        # Pillow's parsers raise whatever their arithmetic meets (OSError, SyntaxError, ValueError, struct.error,
        # IndexError, ...). All of it means one thing here: these bytes are no sound picture.
        raise ServiceError(Problem.BROKEN_IMAGE, f"The {kind} data is damaged or incomplete.") from error


def _decode(data: bytes, kind: str, max_pixels: int, needed_px: int | Callable[[int, int], int] | None) -> Picture:
    container = inspect(data, kind)
    width, height = container.width, container.height
    _check_pixels(width, height, max_pixels * (STREAMED_FACTOR if container.streamed else 1))
    with Image.open(BytesIO(container.data), formats=(kind,)) as image:
        if image.size != (width, height):
            raise ServiceError(Problem.BROKEN_IMAGE, f"The {kind} data gives more than one size.")
        if kind == "JPEG" and needed_px is not None:
            # Both sides stay at least twice as large as what they are resized to.
            side = needed_px if isinstance(needed_px, int) else needed_px(width, height)
            image.draft(None, (2 * side, 2 * side))
        _check_pixels(image.width, image.height, max_pixels)
        image.load()
        upright = _to_rgb(image, container.depth)
    turn = _UPRIGHT.get(container.orientation)
    if turn is not None:
        upright = upright.transpose(turn)
    if turn in _SIDEWAYS:
        width, height = height, width
    return Picture(upright, width, height)


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ServiceError(
            Problem.TOO_MANY_PIXELS, f"The picture has {width} x {height} pixels; at most {max_pixels} are accepted."
        )


def _to_rgb(image: Image.Image, depth: int) -> Image.Image:
    transparent = image.info.get("transparency")
    if image.mode == "L" and isinstance(transparent, int) and depth < 8:  # Pillow scales the samples, not this one
        image.info["transparency"] = transparent * 255 // (2**depth - 1)
    elif image.mode == "RGB" and isinstance(transparent, tuple) and depth == 16:  # of which it keeps the upper halves
        image.info["transparency"] = tuple(sample >> 8 for sample in transparent)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow keeps as 16 or 32 bits
        samples = np.asarray(image).astype(np.int64).clip(0, 65535)
        grey = ((samples * 255 + 32767) // 65535).astype(np.uint8)
        if isinstance(transparent, int):
            grey = np.where(samples == transparent, np.uint8(255), grey)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def longest_side_px(spec: InputSpec) -> int:
    """The longer side, in pixels, that a picture's shorter side may become: what `decode` wants as `needed_px`."""
    return max(spec.height, spec.width, spec.resize.short_side_px or 0)


def prepare(image: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    """Apply the model's resize rule to an RGB picture: uint8 `[spec.height, spec.width, 3]`."""
    interpolation = _FILTERS[spec.resize.interpolation]
    if spec.resize.mode == "letterbox":
        return np.asarray(_letterbox(image, spec, interpolation), dtype=np.uint8)
    whole = (0.0, 0.0, float(image.width), float(image.height))
    box = whole if spec.resize.mode == "stretch" else _crop_box(image, spec)
    if image.size != (spec.width, spec.height) or box != whole:
        image = image.resize((spec.width, spec.height), interpolation, box=box)
    return np.asarray(image, dtype=np.uint8)


def denormalised(values: NDArray[np.float32], spec: InputSpec) -> NDArray[np.uint8]:
    """The pixels whose normalised values `(pixel / 255 - mean) / std` these are, each rounded to the nearest.

    `values` and result are `[N, height, width, 3]`. Raises ServiceError BAD_TENSOR for a value that no pixel has.
    """
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is refused below
        pixels = np.rint((values * std + mean) * np.float32(255))
    if not ((pixels >= 0) & (pixels <= 255)).all():  # not finite, it is neither
        low, high = float((-mean / std).min()), float(((1 - mean) / std).max())
        detail = (
            f"FP32 values have to be (pixel / 255 - mean) / std with the model's mean and std: {low:.3f} to {high:.3f}"
        )
        raise ServiceError(Problem.BAD_TENSOR, f"image: {detail} at the most.")
    found: NDArray[np.uint8] = pixels.astype(np.uint8)
    return found


def _resized(image: Image.Image, spec: InputSpec) -> tuple[int, int]:
    """Size after the `crop` rule's resize: the shorter side is `short_side_px`, and both cover the input."""
    shorter = spec.resize.short_side_px or 0
    scale = max(shorter / min(image.size), spec.width / image.width, spec.height / image.height)
    # The small term keeps a side that is exactly `short_side_px` from being rounded down below it.
    width, height = int(image.width * scale + 1e-6), int(image.height * scale + 1e-6)
    return max(spec.width, width), max(spec.height, height)


def _crop_box(image: Image.Image, spec: InputSpec) -> tuple[float, float, float, float]:
    """The part of the picture that resize-then-crop keeps.

    Pillow's filter still reads beyond the box, so resizing the box alone gives the very pixels of a resize of the
    whole picture and a cut, without making the whole: a strip of 1 x 65,500 would become gigabytes.
    """
    width, height = _resized(image, spec)
    left, top = round((width - spec.width) / 2), round((height - spec.height) / 2)
    x, y = image.width / width, image.height / height
    right, bottom = min((left + spec.width) * x, image.width), min((top + spec.height) * y, image.height)
    return left * x, top * y, right, bottom


def _letterbox(image: Image.Image, spec: InputSpec, interpolation: Image.Resampling) -> Image.Image:
    scale = min(spec.width / image.width, spec.height / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = Image.new("RGB", (spec.width, spec.height), spec.mean_colour)
    canvas.paste(image.resize(size, interpolation), ((spec.width - size[0]) // 2, (spec.height - size[1]) // 2))
    return canvas
