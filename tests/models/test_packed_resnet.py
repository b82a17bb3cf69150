"""Whole ResNets: the packed engine computes the network that torch trained, on every instruction set."""

import numpy as np
import pytest
import torch

from models.latent import LatentConfig, Sign
from models.packing.file import InputSpec
from models.packing.graph import Conv2d, Prelu, Threshold
from models.packing.pack import PackingError, pack_network
from models.quantized import set_pixels
from models.resnet import ResNet, ResNetConfig
from models.xnor import Session, available_isas
from tests.helpers.networks import (
    MEAN,
    STD,
    check_equal,
    make_real_layers_exact,
    normalised,
    observe,
    pictures,
    vary,
)


def network(**fields):
    """A network whose batch norms, slopes and scales are as varied as training makes them."""
    torch.manual_seed(0)
    net = ResNet(ResNetConfig(**{"width": 0.25, "input_size": 32, **fields})).eval()
    set_pixels(net, MEAN, STD)
    vary(net)
    return net


def pack(net, path, **options):
    size = net.config.input_size
    return pack_network(
        net,
        path,
        **options,
        architecture=net.config.name,
        input_spec=InputSpec(height=size, width=size, mean=MEAN, std=STD),
        labels=[str(i) for i in range(net.config.classes)],
    )


VARIANTS = {
    "bireal, prelu, channel, holistic": {},
    "residual, relu, analytic, plain": {
        "block": "residual", "activation": "relu", "scale": "analytic", "latent": LatentConfig(kind="plain")
    },
    "binary shortcut, rprelu, rank1, tucker": {
        "shortcut": "binary", "activation": "rprelu", "scale": "rank1", "latent": LatentConfig(kind="tucker")
    },
    "residual, binary shortcut, none, matrix": {
        "block": "residual", "shortcut": "binary", "activation": "none", "scale": "none",
        "latent": LatentConfig(kind="matrix", rank=0.5),
    },
    "34 layers": {"depth": 34, "width": 0.125},
    "channels that fill no word": {"width": 0.375},
    "imagenet stem": {"stem": "imagenet", "input_size": 64, "classes": 100},
    "8-bit real layers": {"real_weights": "int8"},
    "8-bit real layers, imagenet stem": {
        "real_weights": "int8", "stem": "imagenet", "input_size": 64, "classes": 100,
    },
    "real-valued twin": {"real": True},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_torchs(variant, tmp_path):
    net = network(**VARIANTS[variant])
    path = pack(net, tmp_path / "m.safetensors").path
    images = pictures(3, net.config.input_size)
    with torch.no_grad():
        expected = net(normalised(images)).numpy()
    for isa in available_isas():
        found = Session.load(path, isa=isa, threads=1).run(images)["logits"]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * scale, err_msg=isa)


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """By variant: the packed network, images, and what each module of torch's network gave for them."""
    known = {}

    def make(variant):
        if variant not in known:
            net = network(**VARIANTS[variant])
            make_real_layers_exact(net)
            packed = pack(net, tmp_path_factory.mktemp("exact") / "m.safetensors")
            images = pictures(2, net.config.input_size)
            seen, _ = observe(net, images)
            known[variant] = packed, images, seen, sum(isinstance(m, Sign) for m in net.modules())
        return known[variant]

    return make


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize(
    "variant", [name for name in VARIANTS if name not in ("real-valued twin", "imagenet stem") and "8-bit" not in name]
)
def test_every_bit_and_every_activation_is_torchs(variant, fuse, isa, exact):
    packed, images, seen, expected_signs = exact(variant)
    kept = [
        op for op in packed.header.graph.ops if isinstance(op, Threshold | Prelu) and not op.source.startswith("tail")
    ]
    found = Session.load(packed.path, isa=isa, threads=2, keep=[op.output for op in kept], fuse=fuse).run(images)
    assert check_equal(kept, found, seen) == expected_signs


def test_batch_equals_single(tmp_path):
    net = network()
    session = Session.load(pack(net, tmp_path / "m.safetensors").path)
    images = pictures(9, 32)
    together = session.run(images)["logits"]
    for i in range(9):
        np.testing.assert_array_equal(session.run(images[i : i + 1])["logits"][0], together[i])


def test_half_precision_keeps_the_answer_and_halves_the_real_weights(tmp_path):
    net = network(width=0.5)
    whole, images = pack(net, tmp_path / "whole.safetensors"), pictures(16, 32)
    half = pack(net, tmp_path / "half.safetensors", half=True)
    real = [op.weight for op in whole.header.graph.ops if isinstance(op, Conv2d)]
    assert sum(half.tensors[name].nbytes * 2 for name in real) == sum(whole.tensors[name].nbytes for name in real)
    np.testing.assert_allclose(half.tensors[real[0]], whole.tensors[real[0]], rtol=2**-11, atol=1e-7)
    found = Session.load(half.path).run(images)["logits"]
    expected = Session.load(whole.path).run(images)["logits"]
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99


def test_a_weight_beyond_float16_is_refused_by_name(tmp_path):
    net = network(width=0.125)
    with torch.no_grad():
        net.head.weight[0, 0] = 1e6
    with pytest.raises(PackingError, match=r"head: its largest weight, 1e\+06, does not fit float16"):
        pack(net, tmp_path / "m.safetensors", half=True)
