"""Networks unlike ours: what is packed computes what torch does, and the rest is refused by the module's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.latent import BinaryConv2d, BinaryLinear, Sign
from models.packing.file import InputSpec, PackedFile
from models.packing.graph import Threshold
from models.packing.pack import pack_network
from models.packing.trace import PackingError, trace
from models.xnor import Session
from tests.helpers.networks import MEAN, STD, check_equal, normalised, observe, pictures, vary

SIDE = 16
SPEC = InputSpec(height=SIDE, width=SIDE, mean=MEAN, std=STD)


class Classifier(nn.Module):
    """Stem, what a subclass makes of its 16 channels, and head."""

    def __init__(self, features: int = 16) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.norm, self.norm2 = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.pool(self.body(self.stem(x))).flatten(1))

    def body(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class SharedSign(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.sign = Sign()
        self.first, self.second = BinaryConv2d(16, 16, 3, padding=1), BinaryConv2d(16, 16, 3, padding=1)

    def body(self, x: Tensor) -> Tensor:
        x = x + self.first(self.sign(self.norm(x)))
        return x + self.second(self.sign(self.norm2(x)))


class SharedConv(Classifier):
    def body(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv(self.norm(self.conv(x))))


class JoinedToItself(Classifier):
    def __init__(self) -> None:
        super().__init__(features=32)
        self.act = nn.PReLU()

    def body(self, x: Tensor) -> Tensor:
        return self.act(torch.cat([x, x], 1))


class JoinedByNames(Classifier):
    def __init__(self) -> None:
        super().__init__(features=32)

    def body(self, x: Tensor) -> Tensor:
        return torch.cat(tensors=[x, self.conv(x)], dim=1)


class OverwrittenAtTheEnd(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def body(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        z = self.conv(y)
        return self.relu(y).add_(z)


def packed(network: nn.Module, path: Path, **options: Any) -> PackedFile:
    return pack_network(
        network.eval(), path, architecture="odd", input_spec=SPEC, labels=[str(i) for i in range(5)], **options
    )


@pytest.mark.parametrize("kind", [SharedSign, SharedConv, JoinedToItself, JoinedByNames, OverwrittenAtTheEnd])
def test_it_computes_what_torch_does(kind: type[Classifier], tmp_path: Path) -> None:
    network = kind()
    vary(network)
    file = packed(network, tmp_path / "m.safetensors")
    images = pictures(4, SIDE)
    with torch.no_grad():
        expected = network(normalised(images)).numpy()
    found = Session.load(file.path, threads=1).run(images)["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


class BinaryInFront(Classifier):
    """A batch norm that a sign alone reads follows a binary convolution, and its zeros lie on whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.sign, self.first = Sign(), BinaryConv2d(3, 16, 3, padding=1)
        self.sign2, self.second = Sign(), BinaryConv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        y = self.second(self.sign2(self.norm(self.first(self.sign(x)))))
        return self.head(self.pool(y).flatten(1))


def test_between_a_binary_convolution_and_a_sign_the_bit_is_torchs(tmp_path: Path) -> None:
    network = BinaryInFront()
    vary(network)
    with torch.no_grad():
        network.norm.bias.zero_()
        network.norm.running_mean.copy_(torch.randint(-4, 5, (16,)) * network.first.scale.alpha)
    file = packed(network, tmp_path / "m.safetensors")
    signs = [op for op in file.header.graph.ops if isinstance(op, Threshold)]
    images = pictures(16, SIDE)
    seen, _ = observe(network, images)
    found = Session.load(file.path, threads=1, keep=[op.output for op in signs]).run(images)
    assert check_equal(signs, found, seen) == 2


class ReluInPlace(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def body(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.conv(self.relu(y)) + y


class AddInPlace(Classifier):
    def body(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.add_(x)
        return y


class WeightedSum(Classifier):
    def body(self, x: Tensor) -> Tensor:
        return torch.add(x, self.conv(x), alpha=0.1)


class LinearOverWidth(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(SIDE, SIDE)

    def body(self, x: Tensor) -> Tensor:
        return self.mix(x)


class BinaryLinearOverWidth(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.sign, self.mix = Sign(), BinaryLinear(SIDE, SIDE)

    def body(self, x: Tensor) -> Tensor:
        return self.mix(self.sign(x))


class FlattenedFromTheRows(Classifier):
    def body(self, x: Tensor) -> Tensor:
        return torch.flatten(x, start_dim=2)


class LargeKernel(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Conv2d(16, 16, 33, padding=16)

    def body(self, x: Tensor) -> Tensor:
        return self.large(x)


class EnlargedByOne(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=1)

    def body(self, x: Tensor) -> Tensor:
        return self.up(x)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ReluInPlace, "^relu: works in place on what add reads after it"),
        (AddInPlace, "^add_: works in place on what pool reads after it"),
        (WeightedSum, "^add: a packed sum has two activations and no other argument"),
        (LinearOverWidth, "^mix: a packed linear layer reads a vector"),
        (BinaryLinearOverWidth, "^mix: a packed linear layer reads a vector"),
        (FlattenedFromTheRows, "^flatten: a packed flatten joins dimensions 1 to -1, not 2 to -1"),
        (LargeKernel, "^large: kernel.0: Input should be less than or equal to 31"),
        (EnlargedByOne, "^up: factor: Input should be greater than or equal to 2"),
    ],
)
def test_what_would_compute_something_else_is_refused_by_name(kind: type[Classifier], message: str) -> None:
    with pytest.raises(PackingError, match=message):
        trace(kind())


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_provenance_that_is_no_json_is_refused_by_field(loss: float, tmp_path: Path) -> None:
    with pytest.raises(PackingError, match=r"m\.safetensors: provenance\.metrics\..*loss"):
        packed(SharedSign(), tmp_path / "m.safetensors", provenance={"metrics": {"loss": loss}})
