"""What the benchmarks of the service send and serve: a photograph of 500 x 375 px, and a ResNet-18 for 224 px."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageOps

import app
from models.packing.file import InputSpec
from models.packing.pack import pack_network
from models.quantized import set_pixels
from models.resnet import ResNet, ResNetConfig

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONFIG = ResNetConfig(stem="imagenet", classes=1000, input_size=224, real_weights="int8")
SIZE_PX = (500, 375)


def photograph(path: Path | None = None) -> bytes:
    """A JPEG of 500 x 375 px: the file as it is if it has that size, else scaled and cropped to it.

    The default is the photograph of the astronaut that comes with the page.
    """
    path = path or Path(app.__path__[0]) / "page" / "astronaut.jpg"
    with Image.open(path) as picture:
        if picture.format == "JPEG" and picture.size == SIZE_PX:
            return path.read_bytes()
        buffer = io.BytesIO()
        ImageOps.fit(picture.convert("RGB"), SIZE_PX, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_resnet18(zoo: Path, name: str = "resnet18-224") -> Path:
    """Put a binary ResNet-18 with 8-bit real layers into a repository; gives the repository.

    Its weights are random, which changes no time.
    """
    path = zoo / name / "1" / "model.safetensors"
    network = ResNet(CONFIG).eval()
    set_pixels(network, MEAN, STD)
    spec = InputSpec(height=CONFIG.input_size, width=CONFIG.input_size, mean=MEAN, std=STD)
    labels = [f"class {index}" for index in range(CONFIG.classes)]
    pack_network(network, path, architecture=CONFIG.name, input_spec=spec, labels=labels)
    return zoo
