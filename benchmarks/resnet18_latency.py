"""ResNet-18: this engine against float32, bfloat16 and int8 networks of the same shape.

Stem, 1x1 shortcuts and head of ours stay real, in 8 bits or float32. How it is measured: see latency.py.

    python benchmarks/resnet18_latency.py [--size 224 32] [--threads 1 2] [--batch 1 8] [--rounds 40] [--steps]
"""

from __future__ import annotations

from latency import Pair, compare, parser

from models.resnet import ResNet, ResNetConfig

CLASSES = {224: 1000, 32: 10}
STEMS = {224: "imagenet", 32: "cifar"}


def pair(size: int) -> Pair:
    config = ResNetConfig(stem=STEMS[size], classes=CLASSES[size], input_size=size, real_weights="int8")
    whole = config.model_copy(update={"real_weights": "float32"})
    return Pair(
        title=f"ResNet-18, {size} x {size} px, {config.classes} classes",
        name=config.name,
        size=size,
        binary={"signet": ResNet(config), "signet, real layers float32": ResNet(whole)},
        twin=ResNet(config.real_twin()),
        meaning={"labels": [str(i) for i in range(config.classes)]},
    )


def main() -> None:
    options = parser(__doc__, rounds=40)
    options.add_argument("--size", nargs="+", type=int, choices=sorted(CLASSES), default=sorted(CLASSES, reverse=True))
    chosen = options.parse_args()
    compare(chosen, lambda: [pair(size) for size in chosen.size])


if __name__ == "__main__":
    main()
