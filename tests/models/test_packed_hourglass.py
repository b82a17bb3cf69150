"""Whole hourglasses: the packed engine computes the network that torch trained, on every instruction set."""

import numpy as np
import pytest
import torch

from models.hourglass import HourglassConfig, StackedHourglass
from models.latent import LatentConfig, Sign, TuckerLatent
from models.packing.file import InputSpec, Keypoints
from models.packing.graph import BinaryConv2d, Prelu, Threshold
from models.packing.pack import pack_network
from models.packing.summary import totals
from models.packing.trace import trace
from models.quantized import set_pixels
from models.xnor import Session, available_isas
from tests.helpers.networks import (
    MEAN,
    STD,
    check_equal,
    make_exact,
    make_neutral,
    make_real_layers_exact,
    normalised,
    observe,
    pictures,
    vary,
)

KEYPOINTS = Keypoints(names=["head", "left", "right"], skeleton=[(0, 1), (0, 2)], flip_pairs=[(1, 2)])

VARIANTS = {
    "one stack, prelu, channel, holistic": {},
    "two stacks, none, analytic, plain": {
        "stacks": 2, "activation": "none", "scale": "analytic", "latent": LatentConfig(kind="plain")
    },
    "three stacks, rprelu, rank1, tucker": {
        "stacks": 3, "depth": 1, "activation": "rprelu", "scale": "rank1", "latent": LatentConfig(kind="tucker")
    },
    "relu, none, matrix": {"activation": "relu", "scale": "none", "latent": LatentConfig(kind="matrix", rank=0.5)},
    "depth 4, parts of whole words": {
        "depth": 4, "width": 256, "input_size": 64, "latent": LatentConfig(kind="plain")
    },
    "8-bit real layers": {"real_weights": "int8", "stacks": 2},
    "real-valued twin": {"real": True, "stacks": 2},
}  # fmt: skip


def network(**fields):
    """A network whose batch norms, slopes and scales are as varied as training makes them."""
    torch.manual_seed(0)
    settings = {"width": 48, "depth": 2, "input_size": 32, "keypoints": 3, **fields}
    net = StackedHourglass(HourglassConfig(**settings)).eval()
    set_pixels(net, MEAN, STD)
    vary(net)
    with torch.no_grad():
        for head in net.heads:
            head.weight.normal_(generator=torch.Generator().manual_seed(2))
    return net


def pack(net, path):
    size = net.config.input_size
    return pack_network(
        net,
        path,
        architecture=net.config.name,
        task="pose",
        input_spec=InputSpec(height=size, width=size, mean=MEAN, std=STD),
        keypoints=KEYPOINTS,
    )


def make_exact_throughout(net):
    make_real_layers_exact(net)
    for stack in net.stacks:
        make_neutral(stack[2])
    for conv in (*net.heads, *net.features_back, *net.heatmaps_back):
        make_exact(conv)


@pytest.mark.parametrize("variant", VARIANTS)
def test_heatmaps_are_torchs(variant, tmp_path):
    net = network(**VARIANTS[variant])
    path = pack(net, tmp_path / "m.safetensors").path
    images = pictures(2, net.config.input_size)
    with torch.no_grad():
        expected = net(normalised(images)).permute(0, 2, 3, 1).numpy()
    for isa in available_isas():
        found = Session.load(path, isa=isa, threads=1).run(images)["heatmaps"]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * scale, err_msg=isa)


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """By variant: the packed network, images, what each module of torch's network gave for them, and its heatmaps."""
    known = {}

    def make(variant):
        if variant not in known:
            net = network(**VARIANTS[variant])
            make_exact_throughout(net)
            packed = pack(net, tmp_path_factory.mktemp("exact") / "m.safetensors")
            images = pictures(2, net.config.input_size)
            seen, heatmaps = observe(net, images)
            known[variant] = packed, images, seen, heatmaps, sum(isinstance(m, Sign) for m in net.modules())
        return known[variant]

    return make


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize(
    "variant", [name for name in VARIANTS if name not in ("real-valued twin", "8-bit real layers")]
)
def test_every_bit_and_every_activation_is_torchs(variant, fuse, isa, exact):
    packed, images, seen, heatmaps, expected_signs = exact(variant)
    kept = [op for op in packed.header.graph.ops if isinstance(op, Threshold | Prelu)]
    found = Session.load(packed.path, isa=isa, threads=2, keep=[op.output for op in kept], fuse=fuse).run(images)
    assert check_equal(kept, found, seen) == expected_signs
    np.testing.assert_array_equal(found["heatmaps"], heatmaps.permute(0, 2, 3, 1).numpy())


def test_only_the_named_layers_stay_float(tmp_path):
    packed = pack(network(), tmp_path / "m.safetensors")
    binary = [op for op in packed.header.graph.ops if isinstance(op, BinaryConv2d)]
    assert len(binary) == 3 * (3 + 3 * 2 + 2)
    assert packed.header.keypoints == KEYPOINTS
    sums = totals(packed)
    assert sums.binary_macs > 5 * sums.real_macs
    assert packed.header.sizes.float32_bytes > 8 * packed.header.sizes.packed_bytes


def test_packing_reconstructs_each_shared_tensor_once(tmp_path, monkeypatch):
    calls = []
    plain = TuckerLatent.to_tensor
    monkeypatch.setattr(TuckerLatent, "to_tensor", lambda self: calls.append(id(self)) or plain(self))
    net = network(latent=LatentConfig(init="random"))
    trace(net, ("heatmaps",))
    shared = {id(group) for group in net.holistic.values()}
    assert len(shared) > 3
    assert sorted(call for call in calls if call in shared) == sorted(shared)
