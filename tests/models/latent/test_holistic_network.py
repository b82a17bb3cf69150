"""Holistic groups inside a network: one reconstruction a step, and every way a network is copied or moved."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from models.latent import BinaryConv2d, HolisticLatent, HolisticSlice, LatentConfig, TuckerLatent
from models.resnet import ResNet, ResNetConfig


def small(kind="holistic", **fields):
    torch.manual_seed(0)
    return ResNet(ResNetConfig(width=0.125, input_size=16, latent=LatentConfig(kind=kind, **fields)))


def images(n=2):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_layers_of_one_shape_form_a_group_and_others_are_tucker():
    network = small()
    sizes = {name: group.shape[0] for name, group in network.holistic.items()}
    assert sizes == {"8x8x3x3": 4, "16x16x3x3": 3, "32x32x3x3": 3, "64x64x3x3": 3}
    single = [m for m in network.modules() if isinstance(m, BinaryConv2d) and isinstance(m.latent, TuckerLatent)]
    assert [layer.stride for layer in single] == [(2, 2)] * 3


def test_a_group_starts_at_the_weights_its_layers_had():
    plain, holistic = small("plain"), small("holistic")
    before = [m.binary_weight() for m in plain.modules() if isinstance(m, BinaryConv2d)]
    after = [m.binary_weight() for m in holistic.modules() if isinstance(m, BinaryConv2d)]
    assert len(before) == len(after) == 16
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)


def test_one_reconstruction_a_forward_pass(monkeypatch):
    network = small()
    calls = []
    original = TuckerLatent.to_tensor
    monkeypatch.setattr(TuckerLatent, "to_tensor", lambda self: calls.append(self) or original(self))
    network(images()).sum().backward()
    assert len(calls) == len({id(call) for call in calls}) == 7
    calls.clear()
    network(images()).sum().backward()
    assert len(calls) == 7


@pytest.mark.parametrize("kind", ["plain", "matrix", "tucker", "holistic"])
def test_a_network_compiles_to_one_graph(kind):
    """A graph a layer would be compiled anew for each shape, until torch gives up and runs it slower than without."""
    network, x = small(kind), images()
    expected = network(x)
    torch.compiler.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    for _ in range(2):
        logits = compiled(x)
        assert torch.equal(logits, expected)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_changed_factor_changes_the_next_pass():
    network = small().eval()
    before = network(images())
    with torch.no_grad():
        for group in network.holistic.values():
            group.core.normal_()
    assert not torch.equal(network(images()), before)


def test_an_exception_inside_a_pass_releases_the_groups():
    network = small()
    with pytest.raises(RuntimeError):
        network(torch.randn(1, 5, 16, 16))
    assert all(group._held is None and not group._holding for group in network.holistic.values())


def test_state_dict_holds_each_group_once_and_goes_round():
    network = small().eval()
    names = [name for name in network.state_dict() if "core" in name]
    assert len(names) == 4 + 3
    torch.manual_seed(9)
    other = ResNet(network.config).eval()
    assert not torch.equal(other(images()), network(images()))
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(images()), network(images()))


def test_deepcopy_is_independent():
    network = small().eval()
    twin = copy.deepcopy(network)
    for layer in twin.modules():
        if isinstance(layer, HolisticSlice):
            assert any(layer.holistic is group for group in twin.holistic.values())
    expected = network(images())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.normal_()
    assert torch.equal(network(images()), expected)


def test_moving_dtype_device_and_memory_format_moves_the_groups():
    network = small().eval()
    expected = network(images())
    network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(images()), expected, rtol=1e-4, atol=1e-4)
    double = copy.deepcopy(network).to(torch.float64)
    assert double(images().double()).dtype == torch.float64
    meta = copy.deepcopy(network).to("meta")
    assert meta(torch.empty(2, 3, 16, 16, device="meta")).device.type == "meta"
    assert all(m.to_tensor().device.type == "meta" for m in meta.modules() if isinstance(m, HolisticSlice))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_moving_to_a_gpu():
    network = small().eval()
    torch.testing.assert_close(network.cuda()(images().cuda()).cpu(), small().eval()(images()), rtol=1e-3, atol=1e-3)


def test_bf16_autocast_trains_every_parameter():
    network = small()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = network(images(8)).float().logsumexp(1).sum()
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.dtype == torch.float32, name
    for group in network.holistic.values():
        assert isinstance(group, HolisticLatent)
        assert group.core.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["plain", "matrix", "tucker", "holistic"])
@pytest.mark.parametrize("rank", ["full", 0.25, 0.5])
def test_every_latent_learns_a_small_task(kind, rank):
    network = small(kind, rank=rank)
    x, labels = images(16), torch.arange(16) % 10
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(network(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def _ddp_worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    network = DistributedDataParallel(small().eval())  # batch norm on running statistics: halves equal the whole
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for step in range(2):
        half = images(8).roll(step, 0)[rank * 4 : rank * 4 + 4]
        loss = network(half).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(network.module.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ddp_processes_equal_one(tmp_path):
    mp.spawn(_ddp_worker, args=(str(tmp_path),), nprocs=2)
    network = small().eval()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for step in range(2):
        loss = network(images(8).roll(step, 0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in network.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5, msg=name)
