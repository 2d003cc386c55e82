"""Classifier-free guidance, once (Ho & Salimans 2022, arXiv:2207.12598).

    standard    x_u + s (x_c − x_u)      s = 1 is none; what fvd, samplers and official DMD2 mean by a guidance scale
    offset      x_c + w (x_c − x_u)      w = 0 is none; CausVid and Self-Forcing; s = w + 1

Both are affine in the two predictions, so guiding x0, noise, v or velocity at one timestep is one and the same.
"""

from __future__ import annotations

from torch import Tensor


def guided(cond: Tensor, uncond: Tensor, guidance_scale: float) -> Tensor:
    """``x_u + s (x_c − x_u)`` in float32, standard convention. At s = 1 it is ``cond`` up to rounding: leave the unconditional
    pass out instead."""
    return uncond.float() + guidance_scale * (cond.float() - uncond.float())
