"""Hidden states of a network, for an adapter whose networks are stacks of blocks: read by hooks from a prediction that is
made anyway, and no other code path than training's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from fvd.adapters import Adapter, Conditioning
from fvd.errors import FvdError, PluginError
from fvd.roles import RoleHandle


class BlockFeatures(Adapter):
    """The primitives of features, over `predict_x0`. A mixin: ``class MyAdapter(fvd.BlockFeatures, fvd.FlowMatchingAdapter)``.

    A subclass writes `feature_blocks`, `feature_widths` and `block_feature`. Of a role with several networks, one must serve
    all samples of a call; where each sample has a network of its own, override `predict_x0_with_features`.
    """

    @abstractmethod
    def feature_blocks(self, handle: RoleHandle) -> Sequence[Sequence[nn.Module]]:
        """For each of the role's networks its repeated blocks, in the order of `Family.shard_units`. Raises FvdError for a
        network that has none."""

    @abstractmethod
    def block_feature(self, output: Any, x_t: Tensor) -> Tensor:
        """What a block has returned for latents ``x_t``, as [B, D, T', H', W']."""

    def features(
        self, handle: RoleHandle, x_t: Tensor, t: Tensor, cond: Conditioning, *, layers: Sequence[int]
    ) -> list[Tensor]:
        return self.predict_x0_with_features(handle, x_t, t, cond, layers=layers)[1]

    def predict_x0_with_features(
        self,
        handle: RoleHandle,
        x_t: Tensor,
        t: Tensor,
        cond: Conditioning,
        *,
        layers: Sequence[int],
        attn_kind: str = "dense",
    ) -> tuple[Tensor, list[Tensor]]:
        networks = self.feature_blocks(handle)
        check_layers(handle.name, layers, len(networks[0]))
        with captured_outputs([[blocks[layer] for blocks in networks] for layer in layers]) as outputs:
            x0 = self.predict_x0(handle, x_t, t, cond, attn_kind=attn_kind)
        return x0, [self.block_feature(_only(calls, handle), x_t).float() for calls in outputs]


def default_layers(blocks: int, count: int = 3) -> tuple[int, ...]:
    """``count`` layers evenly spaced over the second half of ``blocks``: [15, 22, 29] of 30. Fewer of a shorter network."""
    first, last = blocks // 2, blocks - 1
    evenly = [first + (last - first) * position // max(count - 1, 1) for position in range(count)]
    return tuple(dict.fromkeys(evenly))


def check_layers(role: str, layers: Sequence[int], blocks: int) -> None:
    """Raises FvdError for a layer that a network of ``blocks`` blocks has not, and for none at all."""
    wrong = [layer for layer in layers if not 0 <= layer < blocks]
    if wrong or not layers:
        asked = f"layer{'s' * (len(wrong) > 1)} {', '.join(map(str, wrong))}" if wrong else "no layer"
        raise FvdError(
            f"features of {asked} of the role {role!r} are asked for, and its network has {blocks} blocks",
            cure=f"Layers are 0 to {blocks - 1}.",
        )


@contextmanager
def captured_outputs(groups: Sequence[Sequence[nn.Module]]) -> Iterator[list[list[Any]]]:
    """What the modules return while the block runs: one list a group, filled call by call. Leaves no hook behind."""
    outputs: list[list[Any]] = [[] for _ in groups]
    hooks = [
        module.register_forward_hook(partial(_keep, calls))
        for group, calls in zip(groups, outputs, strict=True)
        for module in group
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _keep(calls: list[Any], module: nn.Module, inputs: Any, output: Any) -> None:
    calls.append(output)


def _only(calls: list[Any], handle: RoleHandle) -> Any:
    if len(calls) != 1:
        raise PluginError(
            f"a block of the role {handle.name!r} ran {len(calls)} times in one prediction, so its features are not one tensor",
            cure=f"The adapter of the family {handle.family} must override predict_x0_with_features.",
        )
    return calls[0]
