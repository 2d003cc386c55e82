"""Features of diffusers' video transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from fvd.errors import PluginError, mistake_in_code
from fvd.features import BlockFeatures
from fvd.roles import RoleHandle
from fvd.textvideo import TextToVideo


class TransformerFeatures(BlockFeatures, TextToVideo):
    """For any transformer of diffusers whose blocks return tokens [B, L, D] (or these first), one for each patch of the
    latents, frame by frame and row by row. Mixed in first: ``class MyAdapter(TransformerFeatures, fvd.TextToVideoAdapter)``;
    the descriptor then says ``provides=fvd.TEXT_TO_VIDEO | fvd.FEATURE_PRIMITIVES``.
    """

    blocks_name: ClassVar[str] = "transformer_blocks"
    """The transformer's attribute with its repeated blocks."""

    def feature_blocks(self, handle: RoleHandle) -> Sequence[Sequence[nn.Module]]:
        return [list(network.get_submodule(self.blocks_name).children()) for network in handle.modules.values()]

    def feature_widths(self, handle: RoleHandle) -> Sequence[int]:
        config: Any = next(iter(handle.modules.values())).config
        return [config["num_attention_heads"] * config["attention_head_dim"]] * len(self.feature_blocks(handle)[0])

    def block_feature(self, output: Any, x_t: Tensor) -> Tensor:
        tokens: Tensor = output[0] if isinstance(output, tuple) else output
        grid = self.token_grid(x_t)
        if tokens.ndim != 3 or tokens.shape[1] != grid[0] * grid[1] * grid[2]:
            raise PluginError(
                f"the transformer's blocks return {list(tokens.shape)}, not a token for each patch of a grid {list(grid)}",
                cure=mistake_in_code("the adapter's"),
            )
        return tokens.transpose(1, 2).unflatten(2, grid)

    def token_grid(self, x_t: Tensor) -> tuple[int, int, int]:
        """(T', H', W'): of patches of one frame and ``Components.patch_size`` pixels in height and width."""
        patch = self.components.patch_size
        return x_t.shape[2], x_t.shape[3] // patch, x_t.shape[4] // patch
