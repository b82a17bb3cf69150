"""Lowering a torch network to a packed graph: thresholds, packed signs, folding, refusals."""

import numpy as np
import pytest
import torch
from torch import nn

from models.latent import BinaryConv2d, BinaryLinear, Sign
from models.packing import graph as g
from models.packing.trace import PackingError, pack_signs, sign_thresholds, trace


def batch_norm(channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    norm = nn.BatchNorm2d(channels).eval()
    with torch.no_grad():
        norm.weight.normal_(generator=generator)
        norm.bias.normal_(generator=generator)
        norm.running_mean.normal_(std=3, generator=generator)
        norm.running_var.uniform_(0.01, 4, generator=generator)
        norm.weight[::7] = 0  # constant channels of both signs
        norm.weight[1::7] *= 1e-20
        norm.bias[3] = 0
    return norm


def bits(x, thresholds, flip):
    """The documented meaning of a threshold op, on [N, C, H, W]."""
    t = torch.from_numpy(thresholds)[:, None, None]
    return torch.where(torch.from_numpy(flip).bool()[:, None, None], x <= t, x >= t)


def threshold_op(norm):
    traced = trace(nn.Sequential(norm, Sign(), BinaryConv2d(norm.num_features, 2, 1)))
    op = traced.ops[0]
    assert isinstance(op, g.Threshold)
    thresholds = traced.tensors[op.threshold]
    return thresholds, traced.tensors[op.flip] if op.flip else np.zeros(len(thresholds), np.uint8)


def test_thresholds_are_torchs_signs_on_random_numbers():
    norm = batch_norm(70)
    thresholds, flip = threshold_op(norm)
    assert 0 < flip.sum() < 70
    x = torch.randn(4, 70, 16, 16) * 4
    assert torch.equal(bits(x, thresholds, flip), norm(x) >= 0)


def test_thresholds_are_torchs_signs_on_the_threshold_and_one_step_beside_it():
    norm = batch_norm(70)
    thresholds, flip = threshold_op(norm)
    finite = np.where(np.isfinite(thresholds), thresholds, 0).astype(np.float32)
    for value in (finite, np.nextafter(finite, np.float32(np.inf)), np.nextafter(finite, np.float32(-np.inf))):
        x = torch.from_numpy(value)[None, :, None, None].expand(1, -1, 8, 8).contiguous()
        assert torch.equal(bits(x, thresholds, flip), norm(x) >= 0)


def test_whole_numbers_on_the_threshold():
    # mean 3, variance 1 - eps, beta 0: the batch norm of 3 is exactly 0, and sign(0) is +1 for either sign of gamma.
    norm = nn.BatchNorm2d(3).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, -2.0, 0.0]))
        norm.running_mean.fill_(3)
    thresholds, flip = threshold_op(norm)
    assert thresholds.tolist() == [3.0, 3.0, -np.inf]
    assert flip.tolist() == [0, 1, 0]


def test_constant_channels():
    thresholds, flip = sign_thresholds(lambda x: torch.tensor([0.5, -0.5, 0.0]).expand_as(x), 3)
    assert thresholds.tolist() == [-np.inf, np.inf, -np.inf]
    assert flip.tolist() == [0, 0, 0]


def test_a_sign_without_batch_norm_has_threshold_zero():
    thresholds, flip = sign_thresholds(lambda x: x, 4)
    assert np.abs(thresholds).tolist() == [0.0] * 4
    assert flip.tolist() == [0] * 4


@pytest.mark.parametrize("channels", [1, 3, 63, 64, 65, 200])
def test_packed_signs_bit_by_bit(channels):
    signs = torch.randint(0, 2, (3, 2, channels)) * 2 - 1
    packed = pack_signs(signs)
    assert packed.shape == (3, 2, -(-channels // 64))
    for o in range(3):
        for k in range(2):
            for word in range(packed.shape[-1]):
                expected = sum(1 << i for i in range(64) if 64 * word + i < channels and signs[o, k, 64 * word + i] > 0)
                assert int(packed[o, k, word]) == expected


def test_batch_norm_after_a_convolution_is_folded():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=True), batch_norm(8)).eval()
    traced = trace(network)
    (op,) = traced.ops
    assert isinstance(op, g.Conv2d)
    x = torch.randn(2, 3, 6, 6)
    weight = torch.from_numpy(traced.tensors[op.weight]).permute(0, 3, 1, 2)
    found = nn.functional.conv2d(x, weight, torch.from_numpy(traced.tensors[op.bias]))
    torch.testing.assert_close(found, network(x), rtol=1e-5, atol=1e-5)


def test_batch_norm_after_a_binary_convolution_is_folded_into_its_scale():
    network = nn.Sequential(Sign(), BinaryConv2d(3, 8, 3), batch_norm(8)).eval()
    traced = trace(network)
    op = traced.ops[1]
    assert isinstance(op, g.BinaryConv2d)
    assert len(traced.ops) == 2
    x = torch.randn(2, 3, 6, 6)
    acc = nn.functional.conv2d(torch.where(x >= 0, 1.0, -1.0), network[1].binary_weight())
    scale, bias = (torch.from_numpy(traced.tensors[name])[:, None, None] for name in (op.scale, op.bias))
    torch.testing.assert_close(acc * scale + bias, network(x), rtol=1e-5, atol=1e-5)


def test_a_batch_norm_read_by_a_sign_and_by_others_serves_both():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.sign, self.conv = batch_norm(8), Sign(), BinaryConv2d(8, 8, 1)

        def forward(self, x):
            y = self.norm(x)
            return self.conv(self.sign(y)) + y

    kinds = [op.op for op in trace(Both()).ops]
    assert sorted(kinds) == ["add", "affine", "binary_conv2d", "threshold"]


@pytest.mark.parametrize(
    ("network", "named"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid()), "1: a packed graph has no Sigmoid"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), BinaryConv2d(4, 4, 1)), "1: would have to stay float"),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3, padding_mode="reflect", padding=1)),
            "0: a packed convolution pads with zeros",
        ),
        (nn.Sequential(nn.Conv2d(3, 4, 3, padding="same")), "0: a packed convolution pads"),
        (nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)), "0: a packed max-pool"),
        (nn.Sequential(nn.AvgPool2d(3, padding=1, count_include_pad=False)), "0: a packed average pool"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(2)), "0: a packed adaptive pool"),
        (nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear")), "0: a packed upsample"),
        (nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), "without running statistics"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(network, named):
    with pytest.raises(PackingError, match=named.replace("(", r"\(")):
        trace(network)


def test_a_network_that_diverged_is_refused_by_name():
    network = nn.Sequential(Sign(), BinaryConv2d(3, 4, 1))
    with torch.no_grad():
        network[1].latent.weight[0] = float("nan")
    with pytest.raises(PackingError, match="1: its latent weight is not finite"):
        trace(network)


def test_data_dependent_control_flow_is_refused():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(PackingError, match="Branch: cannot be traced"):
        trace(Branch())


def test_tracing_leaves_the_network_in_training_mode():
    network = nn.Sequential(nn.Flatten(), Sign(), BinaryLinear(4, 4)).train()
    trace(network)
    assert network.training
    assert network[0].training
