"""An exponential moving average of a role's weights, on that role's own clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fvd.config.optimization import EmaSettings
from fvd.errors import FvdError


class Ema:
    """The average of the trainable parameters of some modules; buffers are those of the modules.

    After the n-th update of the role, with weights p_n: ``average_n = decay * average_(n-1) + (1 - decay) * p_n``; for
    n <= ``start_step``, ``average_n = p_n``, and ``average_0 = p_0``. Constant decay as in Self-Forcing (arXiv:2506.08009) and
    most diffusion models since DDPM (arXiv:2006.11239). `RoleHandle.step` does it; nothing else moves the average.

    Tensors of the average are float32 and lie, and are sharded, as the parameters do.
    """

    def __init__(self, modules: Mapping[str, nn.Module], settings: EmaSettings) -> None:
        named = nn.ModuleDict(dict(modules)).named_parameters()
        self.settings = settings
        self.parameters: dict[str, nn.Parameter] = {name: p for name, p in named if p.requires_grad}
        """By names as in the state dict of all modules together, ``transformer.blocks.0.weight``."""
        low = next((name for name, p in self.parameters.items() if p.dtype != torch.float32), None)
        if low is not None:
            raise FvdError(f"an EMA needs weights in float32; {low} is in {self.parameters[low].dtype}")
        self.tensors: dict[str, Tensor] = {name: torch.empty_like(p.detach()) for name, p in self.parameters.items()}
        self._is_swapped_in = False
        self.restart()

    @torch.no_grad()
    def restart(self) -> None:
        """Average = weights."""
        for name, parameter in self.parameters.items():
            self.tensors[name].copy_(parameter)

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """After the role has moved for the ``updates``-th time, counted from 1."""
        self._refuse_while_swapped_in()
        if updates <= self.settings.start_step:
            self.restart()
        else:
            weight = 1 - self.settings.decay
            torch._foreach_lerp_(list(self.tensors.values()), list(self.parameters.values()), weight)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The modules have the average in them; afterwards the weights again, bit for bit, whatever happened.

        Values change places one tensor at a time, in the memory that optimizers hold: no second copy of the weights.
        """
        self._refuse_while_swapped_in()
        self._is_swapped_in = True
        exchanged: list[str] = []
        try:
            for name in self.parameters:
                self._exchange(name)
                exchanged.append(name)
            yield
        finally:
            for name in exchanged:
                self._exchange(name)
            self._is_swapped_in = False

    @torch.no_grad()
    def _exchange(self, name: str) -> None:
        parameter, average = self.parameters[name], self.tensors[name]
        weights = parameter.clone()
        parameter.copy_(average)
        average.copy_(weights)

    def _refuse_while_swapped_in(self) -> None:
        if self._is_swapped_in:
            raise RuntimeError("the average is in the modules: leave `swapped_in` first")
