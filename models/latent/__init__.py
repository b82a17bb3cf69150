"""Layers whose weights are signs of a latent decomposition.

A binary layer's weights are `sign(W)`, where W is not a parameter but a reconstruction from latent
parameters that stay real and are trained (Bulat, Kossaifi, Tzimiropoulos, Pantic, arXiv 1904.07852).
`sign` holds the sign and its straight-through gradients, `decomposition` the latents, `scale` the real
factors that multiply a layer's output, `layers` the convolution and linear layer that join the three,
`assign` the choice of latents for a whole network.
"""

from models.latent.assign import LatentConfig, assign_latents, reconstruct_once
from models.latent.decomposition import (
    HolisticLatent,
    HolisticSlice,
    Latent,
    MatrixLatent,
    PlainLatent,
    TuckerLatent,
)
from models.latent.layers import BinaryConv2d, BinaryLinear, RPReLU, anneal, fresh_spread
from models.latent.scale import ScaleKind
from models.latent.sign import Sign, SteKind, ste_sign

__all__ = [
    "BinaryConv2d",
    "BinaryLinear",
    "HolisticLatent",
    "HolisticSlice",
    "Latent",
    "LatentConfig",
    "MatrixLatent",
    "PlainLatent",
    "RPReLU",
    "ScaleKind",
    "Sign",
    "SteKind",
    "TuckerLatent",
    "anneal",
    "assign_latents",
    "fresh_spread",
    "reconstruct_once",
    "ste_sign",
]
