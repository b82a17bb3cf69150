"""The stacked hourglass for pose: this engine against float32, bfloat16 and int8 networks of the same shape.

By default the published size: 256 x 256 px, one stack of depth 4, 256 channels, 16 keypoints. Stem convolution, 1x1
convolutions and head of ours stay real, in 8 bits or float32. How it is measured: see latency.py.

    python benchmarks/hourglass_latency.py [--size 256] [--width 256] [--stacks 1] [--threads 1] [--rounds 20] [--steps]
"""

from __future__ import annotations

from latency import Pair, compare, parser

from models.hourglass import HourglassConfig, StackedHourglass
from models.pose import MPII


def pair(size: int, width: int, stacks: int) -> Pair:
    config = HourglassConfig(
        input_size=size, width=width, stacks=stacks, keypoints=len(MPII.names), real_weights="int8"
    )
    whole = config.model_copy(update={"real_weights": "float32"})
    return Pair(
        title=f"Hourglass, {size} x {size} px, {width} channels, {stacks} stack(s)",
        name=config.name,
        size=size,
        binary={"signet": StackedHourglass(config), "signet, real layers float32": StackedHourglass(whole)},
        twin=StackedHourglass(config.real_twin()),
        meaning={"task": "pose", "keypoints": MPII},
    )


def main() -> None:
    options = parser(__doc__, rounds=20)
    for name, default in (("size", 256), ("width", 256), ("stacks", 1)):
        options.add_argument(f"--{name}", type=int, default=default)
    chosen = options.parse_args()
    compare(chosen, lambda: [pair(chosen.size, chosen.width, chosen.stacks)])


if __name__ == "__main__":
    main()
