"""Counts what goes through the networks of a run, by a hook on each role's modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fvd.accounting import Passes
from fvd.roles import RoleHandle


class PassCounter:
    """Samples that go through each role's networks, until `close`.

    A forward is a call of one of a role's modules (a model of two experts calls one or the other), and counts as many
    samples as its first output has. It is made for a backward pass where that output carries a graph. Blocks that are
    recomputed in the backward pass are parts of a module and count for nothing, nor does anything else inside one.
    """

    def __init__(self, handles: Iterable[RoleHandle]) -> None:
        self._forwards: dict[str, int] = {}
        self._backwards: dict[str, int] = {}
        self._hooks: list[RemovableHandle] = []
        for handle in handles:
            self._forwards[handle.name] = self._backwards[handle.name] = 0
            self._hooks += [self._count(handle.name, module) for module in handle.modules.values()]

    def _count(self, role: str, module: nn.Module) -> RemovableHandle:
        def count(module: nn.Module, args: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                samples = len(tensor)
                self._forwards[role] += samples
                self._backwards[role] += samples * tensor.requires_grad

        return module.register_forward_hook(count)

    def start(self) -> None:
        """Forget what was counted: what validation calls is no step's."""
        for counts in (self._forwards, self._backwards):
            counts.update(dict.fromkeys(counts, 0))

    def passes(self, samples: int) -> dict[str, Passes]:
        """Since `start`, by role, for a step of ``samples`` samples."""
        return {role: Passes(self._forwards[role] / samples, self._backwards[role] / samples) for role in self._forwards}

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def first_tensor(output: object) -> Tensor | None:
    """The first tensor with a batch dimension in what a module returns: a tensor, or a (named) sequence or mapping of them."""
    if isinstance(output, Tensor):
        return output if output.ndim else None
    items: Iterable[object] = ()
    if isinstance(output, Mapping):
        items = output.values()
    elif isinstance(output, Sequence) and not isinstance(output, str):
        items = output
    return next((tensor for item in items if (tensor := first_tensor(item)) is not None), None)
