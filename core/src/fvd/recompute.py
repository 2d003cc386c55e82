"""Activation checkpointing: the repeated blocks of a trained role are computed again in the backward pass."""

from __future__ import annotations

from functools import partial

from torch.utils.checkpoint import checkpoint

from fvd.errors import FvdError
from fvd.families import Family
from fvd.roles import RoleHandle


def recompute_activations(family: Family, handle: RoleHandle) -> None:
    """Keep only the inputs of the role's `Family.shard_units`. Gradients stay the same; names of parameters too.

    Raises FvdError for a family without units: silence would look like saved memory.
    """
    units = family.shard_units(handle)
    if not units:
        raise FvdError(
            f"the family {handle.family} does not say which blocks can be recomputed",
            cure="Remove training.enable_gradient_checkpointing_type.",
        )
    for unit in units:
        # Roles are in eval mode and draw nothing, so there is no generator state to keep.
        unit.forward = partial(checkpoint, unit.forward, use_reentrant=False, preserve_rng_state=False)
