"""Latent weights: trained factors and the real tensor W that they reconstruct.

==========  =======================================  ==========================================
latent      parameters                               W = `to_tensor()`
==========  =======================================  ==========================================
plain       W                                        W
matrix      U [o, r], s [r], V [n, r]                reshape(U diag(s) V^T), n = the other modes
tucker      core G [ranks], a factor [size, rank]    G x1 U1 x2 U2 ... (one product a mode)
            a mode
holistic    the same, with a first mode of L layers  slice l is the weight of layer l
==========  =======================================  ==========================================

Weights are `[out, in / groups, kh, kw]` (convolution) or `[out, in]` (linear). A latent is initialised
from a given W by SVD (matrix) or HOSVD (tucker, holistic), so that at full rank it starts as exactly
that W; or at random, with the variance of the reconstruction matched to W's.

Reconstruction is always done in the parameters' own precision: autocast is switched off, because a
rounded W has other signs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import ceil, prod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

Rank = Literal["full"] | float | int | tuple[int, ...]
Init = Literal["decomposition", "random"]
LARGE_KRONECKER = 64


class Latent(nn.Module, ABC):
    """What a binary layer's weights are the sign of. `shape` is the shape of W."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    @abstractmethod
    def to_tensor(self) -> Tensor:
        """W, real, of `self.shape`; differentiable with respect to the latent parameters."""

    def forward(self) -> Tensor:
        """The same as `to_tensor`."""
        return self.to_tensor()

    @abstractmethod
    def matrices(self) -> Iterator[tuple[nn.Parameter, tuple[int, ...]]]:
        """Each parameter that is a linear map, with its shape as one: [rows, columns].

        A tensor of more modes is unfolded along the mode of the outputs; that of several layers is a stack of
        matrices, [layers, rows, columns].
        """


class PlainLatent(Latent):
    """W itself is the parameter, as in every other binary network."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.shape)
        self.weight = nn.Parameter(weight.detach().clone())

    def decompose(self, weight: Tensor) -> None:
        """Take `weight`, of `self.shape`, in place."""
        with torch.no_grad():
            self.weight.copy_(weight)

    def to_tensor(self) -> Tensor:
        return self.weight

    def matrices(self) -> Iterator[tuple[nn.Parameter, tuple[int, ...]]]:
        yield self.weight, (len(self.weight), self.weight[0].numel())


class MatrixLatent(Latent):
    """W = reshape(U diag(s) V^T) with U [o, r], s [r], V [n, r] over W as an [o, n] matrix.

    Parameters
    ----------
    weight : the W to start from.
    rank : `full` (min(o, n)), a fraction of full (float), or r itself (int), which may exceed full:
        the surplus starts with s = 0, so W is unchanged.
    init : `decomposition` (truncated SVD of `weight`) or `random` (variance of `weight`).
    """

    def __init__(self, weight: Tensor, rank: Rank = "full", init: Init = "decomposition") -> None:
        super().__init__(weight.shape)
        matrix = weight.detach().reshape(weight.shape[0], -1)
        rows, columns = matrix.shape
        full = min(rows, columns)
        r = matrix_rank(full, rank)
        if init == "random":
            u, v = torch.randn(rows, r).to(matrix), torch.randn(columns, r).to(matrix)
            gain = (_spread(matrix) / _spread(u @ v.T)).sqrt()
            u, v, s = u * gain, v * gain, matrix.new_ones(r)
        else:
            u, s, v = _svd(matrix, min(r, full))
            surplus = r - u.shape[1]
            if surplus > 0:
                u = torch.cat([u, torch.randn(rows, surplus).to(u) / rows**0.5], dim=1)
                v = torch.cat([v, torch.randn(columns, surplus).to(v) / columns**0.5], dim=1)
                s = torch.cat([s, s.new_zeros(surplus)])
        self.u, self.s, self.v = nn.Parameter(u), nn.Parameter(s), nn.Parameter(v)

    def decompose(self, weight: Tensor) -> None:
        """Take the factors of `weight`, of `self.shape`, in place; cut off to `rank`.

        Columns beyond the full rank stay as they are, with s = 0.
        """
        matrix = weight.detach().reshape(weight.shape[0], -1)
        with torch.no_grad():
            u, s, v = _svd(matrix, min(self.rank, *matrix.shape))
            self.s.zero_()
            self.u[:, : len(s)], self.s[: len(s)], self.v[:, : len(s)] = u, s, v

    @property
    def rank(self) -> int:
        """r, the number of columns of U and V."""
        return len(self.s)

    def to_tensor(self) -> Tensor:
        with _full_precision(self.u):
            return ((self.u * self.s) @ self.v.T).reshape(self.shape)

    def matrices(self) -> Iterator[tuple[nn.Parameter, tuple[int, ...]]]:
        for factor in (self.u, self.v):
            yield factor, tuple(factor.shape)

    def extra_repr(self) -> str:
        return f"shape={self.shape}, rank={self.rank}"


class TuckerLatent(Latent):
    """W = G x1 U1 x2 U2 ... with a core G of shape `ranks` and a factor [size, rank] a mode.

    Parameters
    ----------
    weight : the W to start from, any number of modes.
    rank : `full`, a fraction (float) of the two channel modes, the others staying full, or one rank a mode
        (tuple).
    init : `decomposition` (HOSVD of `weight`) or `random` (variance of `weight`).
    """

    channel_modes: tuple[int, ...] = (0, 1)

    def __init__(self, weight: Tensor, rank: Rank = "full", init: Init = "decomposition") -> None:
        super().__init__(weight.shape)
        weight = weight.detach()
        ranks = tucker_ranks(self.shape, rank, self.channel_modes)
        if init == "random":
            core = torch.randn(ranks).to(weight)
            factors = [torch.randn(n, r).to(weight) / r**0.5 for n, r in zip(self.shape, ranks, strict=True)]
            core *= _spread(weight) / _spread(_multi_mode_product(core, factors, self.channel_modes))
        else:
            core, factors = _hosvd(weight, ranks)
        # Kept unfolded along the first mode: a 4- or 5-mode parameter would be taken for images by
        # `to(memory_format=...)`.
        self.rank = ranks
        self.core = nn.Parameter(core.reshape(ranks[0], -1))
        self.factors = nn.ParameterList(nn.Parameter(factor) for factor in factors)

    def decompose(self, weight: Tensor) -> None:
        """Take core and factors of `weight`, of `self.shape`, in place; cut off to `rank`."""
        with torch.no_grad():
            core, factors = _hosvd(weight, self.rank)
            self.core.copy_(core.reshape(self.core.shape))
            for parameter, value in zip(self.factors, factors, strict=True):
                parameter.copy_(value)

    def core_tensor(self) -> Tensor:
        """G, of shape `rank`."""
        return self.core.reshape(self.rank)

    def to_tensor(self) -> Tensor:
        with _full_precision(self.core):
            return _multi_mode_product(self.core_tensor(), list(self.factors), self.channel_modes)

    def matrices(self) -> Iterator[tuple[nn.Parameter, tuple[int, ...]]]:
        rows = self.channel_modes[0]
        yield self.core, (*self.rank[: rows + 1], prod(self.rank[rows + 1 :]))
        for factor in self.factors:
            yield factor, tuple(factor.shape)

    def extra_repr(self) -> str:
        return f"shape={self.shape}, rank={self.rank}"


class HolisticLatent(TuckerLatent):
    """One Tucker tensor [L, out, in, kh, kw] whose slices are the weights of L layers of one shape.

    Between `hold` and `release` the tensor is reconstructed once, however many layers read it, so that
    the L layers of one forward pass share one reconstruction and one backward pass through it. A network
    does this around its forward pass with `reconstruct_once`; outside, each read reconstructs.
    """

    channel_modes = (1, 2)

    def __init__(self, weights: Tensor, rank: Rank = "full", init: Init = "decomposition") -> None:
        super().__init__(weights, rank, init)
        self._holding = False
        self._held: Tensor | None = None

    def hold(self) -> None:
        """From now on keep the first reconstruction and hand it out again."""
        self._holding, self._held = True, None

    def release(self) -> None:
        """Forget it: parameters may change now."""
        self._holding, self._held = False, None

    def to_tensor(self) -> Tensor:
        if self._held is not None:
            return self._held
        value = super().to_tensor()
        if self._holding:
            self._held = value
        return value


class HolisticSlice(Latent):
    """Layer `index` of a holistic tensor.

    The tensor is registered once, by the network (see `assign_latents`), not by each of its slices:
    it stands once in the `state_dict`, and follows the network through `deepcopy` and `to`.
    """

    def __init__(self, holistic: HolisticLatent, index: int) -> None:
        super().__init__(holistic.shape[1:])
        self.index = index
        self.__dict__["_holistic"] = holistic

    @property
    def holistic(self) -> HolisticLatent:
        """The tensor that this is a slice of."""
        found: HolisticLatent = self.__dict__["_holistic"]
        return found

    def to_tensor(self) -> Tensor:
        return self.holistic.to_tensor()[self.index]

    def matrices(self) -> Iterator[tuple[nn.Parameter, tuple[int, ...]]]:
        return iter(())  # the shared tensor, a part of the network, has them

    def extra_repr(self) -> str:
        return f"slice {self.index} of {self.holistic.shape}"


def matrix_rank(full: int, rank: Rank) -> int:
    """The rank r of a matrix whose full rank is `full`. Raises ValueError for what makes no sense."""
    if rank == "full":
        return full
    if isinstance(rank, float) and rank > 0:
        return max(1, ceil(rank * full))
    if isinstance(rank, int) and rank >= 1:
        return rank
    raise ValueError(f"rank of a matrix latent is {rank!r}, expected 'full', a fraction above 0, or an int >= 1")


def tucker_ranks(shape: Sequence[int], rank: Rank, channel_modes: Sequence[int]) -> tuple[int, ...]:
    """One rank a mode. Raises ValueError for what makes no sense."""
    if rank == "full":
        return tuple(shape)
    if isinstance(rank, float) and 0 < rank <= 1:
        return tuple(max(1, ceil(rank * n)) if mode in channel_modes else n for mode, n in enumerate(shape))
    if (
        isinstance(rank, tuple)
        and len(rank) == len(shape)
        and all(1 <= r <= n for r, n in zip(rank, shape, strict=True))
    ):
        return rank
    raise ValueError(
        f"rank of a Tucker latent of shape {tuple(shape)} is {rank!r}, expected 'full', a fraction in (0, 1], "
        f"or one rank a mode within the shape"
    )


def _spread(tensor: Tensor) -> Tensor:
    """Root mean square: the standard deviation of weights, whose mean is 0 (and of a single one)."""
    return tensor.square().mean().sqrt()


def _full_precision(parameter: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast on the parameter's device."""
    device = parameter.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U [m, r], s [r], V [n, r] of the r largest singular values; computed in float64."""
    from tensorly.tenalg import svd_interface

    u, s, vt = svd_interface(matrix.detach().cpu().double().numpy(), n_eigenvecs=rank, method="truncated_svd")
    return _like(u, matrix), _like(s, matrix), _like(np.ascontiguousarray(vt.T), matrix)


def _hosvd(weight: Tensor, ranks: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Core and factors of the higher-order SVD (De Lathauwer et al. 2000), truncated; in float64."""
    from tensorly import unfold
    from tensorly.tenalg import multi_mode_dot

    array = weight.detach().cpu().double().numpy()
    factors = []
    for mode, rank in enumerate(ranks):
        unfolded = unfold(array, mode)
        # The left singular vectors are the eigenvectors of the small Gram matrix: far cheaper than the SVD
        # of an [n, n'] unfolding with n' >> n, and as orthonormal.
        _, vectors = np.linalg.eigh(unfolded @ unfolded.T)
        factors.append(np.ascontiguousarray(vectors[:, ::-1][:, :rank]))
    core = multi_mode_dot(array, factors, transpose=True)
    return _like(core, weight), [_like(factor, weight) for factor in factors]


def _like(array: np.ndarray[tuple[int, ...], np.dtype[np.float64]], reference: Tensor) -> Tensor:
    return torch.from_numpy(array.copy()).to(reference)


def _multi_mode_product(core: Tensor, factors: Sequence[Tensor], channel_modes: Sequence[int]) -> Tensor:
    """G x1 U1 x2 U2 ... in a few large matrix products.

    Nearly all the work is in the two channel modes. The other, small modes (kernel height and width, layers) come
    first: their product is one matrix product with the Kronecker product of their factors, where one mode at a time
    would be a thin product each, bound by memory. The channel modes follow, each as one product without a batch.
    """
    small = [mode for mode in range(core.ndim) if mode not in channel_modes]
    rows, columns = channel_modes
    value = core.permute(*small, rows, columns)
    shape = value.shape
    if small:
        # Layers come first among the small modes; many of them would make a Kronecker product that costs more.
        first = 1 if len(small) > 1 and prod([len(factors[mode]) for mode in small]) > LARGE_KRONECKER else 0
        if first:
            value = factors[small[0]] @ value.reshape(shape[0], -1)
        kernel = _kronecker([factors[mode] for mode in small[first:]])
        value = kernel @ value.reshape(-1 if first else 1, kernel.shape[1], prod(shape[-2:]))
    value = value.reshape(-1, *shape[-2:]).transpose(0, 1).reshape(shape[-2], -1)
    value = (factors[rows] @ value).reshape(-1, shape[-1]) @ factors[columns].T
    order = [rows, *small, columns]
    value = value.reshape([len(factors[mode]) for mode in order])
    return value.permute([order.index(mode) for mode in range(core.ndim)]).contiguous()


def _kronecker(factors: Sequence[Tensor]) -> Tensor:
    product = factors[0]
    for factor in factors[1:]:
        product = torch.kron(product, factor)
    return product
