"""Latent decompositions against tensorly, numpy, explicit sums and closed-form gradients."""

import numpy as np
import pytest
import torch
from tensorly import unfold
from tensorly.tenalg import multi_mode_dot
from tensorly.tucker_tensor import tucker_to_tensor

from models.latent import HolisticLatent, HolisticSlice, MatrixLatent, PlainLatent, TuckerLatent, ste_sign

SHAPES = [(16, 8, 3, 3), (8, 32, 1, 1), (6, 5, 5, 3), (24, 10)]
HOLISTIC_SHAPES = [(3, 16, 8, 3, 3), (2, 8, 8, 1, 1), (4, 6, 6, 5, 5)]


def weight(shape, dtype=torch.float64, spread=0.3):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0)) * spread


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("latent", [PlainLatent, MatrixLatent, TuckerLatent])
def test_full_rank_starts_at_the_given_signs(latent, shape, dtype):
    w = weight(shape, dtype)
    assert torch.equal(ste_sign(latent(w).to_tensor()), ste_sign(w))


@pytest.mark.parametrize("shape", HOLISTIC_SHAPES)
def test_full_rank_holistic_starts_at_the_given_signs(shape):
    w = weight(shape, torch.float32)
    assert torch.equal(ste_sign(HolisticLatent(w).to_tensor()), ste_sign(w))


@pytest.mark.parametrize(
    ("latent", "shape"), [(TuckerLatent, s) for s in SHAPES] + [(HolisticLatent, s) for s in HOLISTIC_SHAPES]
)
@pytest.mark.parametrize("rank", ["full", 0.5])
def test_tucker_reconstruction_is_tensorlys_and_the_explicit_sum(latent, shape, rank):
    module = latent(weight(shape), rank, "random")
    core = module.core_tensor().detach()
    factors = [factor.detach() for factor in module.factors]
    found = module.to_tensor().detach()
    expected = tucker_to_tensor((core.numpy(), [factor.numpy() for factor in factors]))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-14)
    inner, outer = "abcde"[: len(shape)], "vwxyz"[: len(shape)]
    terms = ",".join(o + i for o, i in zip(outer, inner, strict=True))
    einsum = torch.einsum(f"{inner},{terms}->{outer}", core, *factors)
    torch.testing.assert_close(found, einsum, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
def test_matrix_reconstruction_is_the_explicit_sum(shape):
    module = MatrixLatent(weight(shape), 3, "random")
    expected = sum(module.s[k] * torch.outer(module.u[:, k], module.v[:, k]) for k in range(module.rank)).reshape(shape)
    torch.testing.assert_close(module.to_tensor(), expected, rtol=1e-12, atol=1e-14)


def upstream_and_mask(module):
    """A loss whose gradient with respect to sign(W) is known, and what the STE lets through to W."""
    w = module.to_tensor()
    upstream = torch.randn(w.shape, dtype=w.dtype, generator=torch.Generator().manual_seed(1))
    (ste_sign(w) * upstream).sum().backward()
    return (upstream * (w.detach().abs() < 1)).numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_matrix_gradients_are_the_closed_form(shape):
    module = MatrixLatent(weight(shape, spread=1.0), 0.6, "random")
    masked = upstream_and_mask(module).reshape(shape[0], -1)
    assert 0 < (masked == 0).sum() < masked.size
    u, s, v = (p.detach().numpy() for p in (module.u, module.s, module.v))
    np.testing.assert_allclose(module.u.grad, masked @ v * s, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(module.v.grad, masked.T @ u * s, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(module.s.grad, np.einsum("ok,on,nk->k", u, masked, v), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("latent", "shape"), [(TuckerLatent, s) for s in SHAPES] + [(HolisticLatent, s) for s in HOLISTIC_SHAPES]
)
def test_tucker_gradients_are_the_closed_form(latent, shape):
    module = latent(weight(shape, spread=1.0), 0.7, "random")
    masked = upstream_and_mask(module)
    assert 0 < (masked == 0).sum() < masked.size
    core = module.core_tensor().detach().numpy()
    factors = [factor.detach().numpy() for factor in module.factors]
    core_gradient = multi_mode_dot(masked, factors, transpose=True)
    np.testing.assert_allclose(module.core.grad.reshape(module.rank), core_gradient, rtol=1e-9, atol=1e-11)
    for mode, factor in enumerate(module.factors):
        others = multi_mode_dot(core, factors, skip=mode)
        expected = unfold(masked, mode) @ unfold(others, mode).T
        np.testing.assert_allclose(factor.grad, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rank", [1, 2, 5, 8])
def test_truncated_matrix_is_the_best_approximation(rank):
    w = weight((8, 6, 3, 3))
    singular = np.linalg.svd(w.reshape(8, -1).numpy(), compute_uv=False)
    error = (MatrixLatent(w, rank).to_tensor() - w).norm().item()
    assert error == pytest.approx(float(np.sqrt((singular[rank:] ** 2).sum())), abs=1e-10)


def test_surplus_rank_starts_unchanged_and_learns():
    w = weight((6, 4, 3, 3))
    module = MatrixLatent(w, 10)
    torch.testing.assert_close(module.to_tensor(), w, rtol=0, atol=1e-12)
    module.to_tensor().sum().backward()
    assert (module.s.grad[6:] != 0).all()


def test_truncated_tucker_error_falls_with_rank_and_is_within_the_hosvd_bound():
    w = weight((12, 10, 3, 3))
    errors = []
    for share in (0.25, 0.5, 0.75, 1.0):
        module = TuckerLatent(w, share)
        errors.append((module.to_tensor() - w).norm().item())
        # De Lathauwer et al. 2000, property 10: at most the sum of the dropped squared singular values.
        dropped = sum(
            (np.linalg.svd(unfold(w.numpy(), mode), compute_uv=False)[r:] ** 2).sum()
            for mode, r in enumerate(module.rank)
        )
        assert errors[-1] ** 2 <= dropped + 1e-12
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-10


@pytest.mark.parametrize(
    ("latent", "shape", "rank", "expected"),
    [
        (MatrixLatent, (16, 8, 3, 3), "full", 16),
        (MatrixLatent, (16, 8, 3, 3), 0.25, 4),
        (MatrixLatent, (16, 8, 3, 3), 0.01, 1),
        (MatrixLatent, (16, 8, 3, 3), 40, 40),
        (TuckerLatent, (16, 8, 3, 3), "full", (16, 8, 3, 3)),
        (TuckerLatent, (16, 8, 3, 3), 0.5, (8, 4, 3, 3)),
        (TuckerLatent, (16, 8, 3, 3), (2, 3, 1, 3), (2, 3, 1, 3)),
        (HolisticLatent, (4, 16, 8, 3, 3), 0.5, (4, 8, 4, 3, 3)),
        (HolisticLatent, (4, 16, 8, 3, 3), (2, 8, 8, 3, 3), (2, 8, 8, 3, 3)),
    ],
)
def test_rank_means_what_it_says(latent, shape, rank, expected):
    assert latent(weight(shape), rank).rank == expected


@pytest.mark.parametrize(
    ("latent", "rank"),
    [
        *[(MatrixLatent, rank) for rank in (0, -0.5, (2, 2))],
        *[(TuckerLatent, rank) for rank in (0.0, 1.5, 3, (1, 2), (17, 8, 3, 3), (0, 8, 3, 3))],
    ],
)
def test_senseless_rank_is_refused(latent, rank):
    with pytest.raises(ValueError, match="rank"):
        latent(weight((16, 8, 3, 3)), rank)


@pytest.mark.parametrize("rank", ["full", 0.5])
@pytest.mark.parametrize(
    ("latent", "shape"),
    [(MatrixLatent, (64, 32, 3, 3)), (TuckerLatent, (64, 32, 3, 3)), (HolisticLatent, (4, 32, 32, 3, 3))],
)
def test_random_factors_have_the_variance_of_the_weight(latent, shape, rank):
    torch.manual_seed(0)
    w = weight(shape, spread=0.07)
    found = latent(w, rank, "random").to_tensor()
    assert found.square().mean().sqrt().item() == pytest.approx(w.std().item(), rel=1e-3)


def test_slices_are_the_layers_weights():
    group = HolisticLatent(weight((3, 8, 8, 3, 3)), 0.5)
    whole = group.to_tensor()
    for index in range(3):
        assert torch.equal(HolisticSlice(group, index).to_tensor(), whole[index])


def test_autocast_does_not_round_the_reconstruction():
    for module in (
        MatrixLatent(weight((16, 8, 3, 3), torch.float32)),
        TuckerLatent(weight((16, 8, 3, 3), torch.float32)),
    ):
        plain = module.to_tensor()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(module.to_tensor(), plain)
