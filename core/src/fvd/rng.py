"""Randomness as a function: every draw of training is keyed by (run seed, step, position in the global batch).

So the micro-batch size, the number of ranks and a resume change no draw, and a checkpoint needs no generator state.
Generators live on the CPU, whatever the device of training, so that a run draws the same numbers everywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed from any key; equal keys give equal seeds on every machine and Python version."""
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seeded_generator(*key: int | str) -> torch.Generator:
    """A fresh CPU generator for a key."""
    return torch.Generator().manual_seed(derive_seed(*key))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on ``device``. Through pinned memory to a GPU: a copy from pageable memory waits for all queued work."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def randn_per_sample(
    shape: Sequence[int], generators: Sequence[torch.Generator], *, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal [B, *shape], sample b drawn from ``generators[b]``."""
    draws = [torch.randn(tuple(shape), generator=generator, dtype=torch.float32) for generator in generators]
    return to_device(torch.stack(draws).to(dtype), device)


@dataclass(frozen=True)
class StepRandom:
    """The randomness of one micro-batch of one step.

    shared: equal for all samples and ranks of the step (say, at which step a rollout exits, so that every rank makes
        the same number of forward passes).
    per_sample: one generator a sample, in batch order.
    """

    shared: torch.Generator
    per_sample: list[torch.Generator]
    device: torch.device

    @classmethod
    def for_step(cls, *, seed: int, step: int, first_position: int, batch_size: int, device: torch.device) -> StepRandom:
        """``first_position`` is where this micro-batch begins in the global batch of ``step``."""
        positions = range(first_position, first_position + batch_size)
        return cls(
            shared=seeded_generator("train", seed, step, "shared"),
            per_sample=[seeded_generator("train", seed, step, position) for position in positions],
            device=device,
        )

    def randn_like(self, reference: Tensor) -> Tensor:
        """Standard normal of the shape of ``reference`` [B, ...], float32."""
        return randn_per_sample(reference.shape[1:], self.per_sample, device=self.device)

    def randn_of(self, drawing: Sequence[bool], reference: Tensor) -> Tensor:
        """The same where ``drawing`` [B] says so, and zeros elsewhere: a sample that needs no noise draws none, so that its
        later draws do not depend on what its neighbours need."""
        shape = reference.shape[1:]
        draws = [
            torch.randn(shape, generator=generator) if draws else torch.zeros(shape)
            for generator, draws in zip(self.per_sample, drawing, strict=True)
        ]
        return to_device(torch.stack(draws), self.device)

    def rand(self) -> Tensor:
        """Uniform in [0, 1), one a sample: [B], float32."""
        draws = [torch.rand((), generator=generator) for generator in self.per_sample]
        return to_device(torch.stack(draws), self.device)

    def randn(self) -> Tensor:
        """Standard normal, one a sample: [B], float32."""
        draws = [torch.randn((), generator=generator) for generator in self.per_sample]
        return to_device(torch.stack(draws), self.device)

    def indices(self, count: int) -> list[int]:
        """Integers in [0, count), one a sample, on the host."""
        return [int(torch.randint(count, (), generator=generator)) for generator in self.per_sample]

    def shared_index(self, count: int) -> int:
        """One integer in [0, count), the same for the whole step."""
        return int(torch.randint(count, (), generator=self.shared))

    def shared_rand(self) -> Tensor:
        """Uniform in [0, 1), the same for the whole step: [B], float32."""
        draw = torch.rand((), generator=self.shared)
        return to_device(draw.expand(len(self.per_sample)).clone(), self.device)
