"""Random Wan pipelines and prepared data of several sizes, written by `python benchmarks/inputs.py FOLDER SIZE`.

In a process of their own: making them takes torch, and a benchmark's own process stays small.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Size:
    """A Wan transformer, and the batch that it is trained on. latents: [T, H, W]."""

    layers: int
    heads: int
    head_dim: int
    ffn_dim: int
    freq_dim: int
    latents: tuple[int, int, int]
    batch_size: int
    text_dim: int = 32

    @property
    def transformer(self) -> dict[str, Any]:
        """Arguments of diffusers' WanTransformer3DModel, where they are not its defaults."""
        return {
            "num_layers": self.layers,
            "num_attention_heads": self.heads,
            "attention_head_dim": self.head_dim,
            "ffn_dim": self.ffn_dim,
            "freq_dim": self.freq_dim,
            "text_dim": self.text_dim,
        }


SIZES = {
    "40k": Size(layers=3, heads=2, head_dim=12, ffn_dim=96, freq_dim=32, latents=(5, 8, 8), batch_size=2),
    "2m": Size(layers=4, heads=8, head_dim=24, ffn_dim=768, freq_dim=256, latents=(5, 24, 24), batch_size=1),
    "5m": Size(layers=8, heads=8, head_dim=24, ffn_dim=768, freq_dim=256, latents=(5, 16, 16), batch_size=1),
    "long": Size(layers=6, heads=8, head_dim=24, ffn_dim=768, freq_dim=256, latents=(5, 24, 24), batch_size=2),
}
CLIPS = 16
CHANNELS = 16
TEXT_TOKENS = 8
"""Of a prompt; the network attends to 512, padding included."""


def write(folder: Path, size: Size) -> None:
    """``folder/model``: a pipeline with random weights; ``folder/data``: ``CLIPS`` clips of noise, with texts of noise."""
    import torch
    from diffusers import WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    from fvd.diffusers_format.tiny import VOCABULARY_SIZE
    from fvd_wan.tiny import make_tiny_wan

    model = folder / "model"
    make_tiny_wan(model)
    for part in ("transformer", "text_encoder"):
        shutil.rmtree(model / part)
    torch.manual_seed(0)
    WanTransformer3DModel(**size.transformer).save_pretrained(model / "transformer")
    sizes = UMT5Config(vocab_size=VOCABULARY_SIZE, d_model=size.text_dim, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    UMT5EncoderModel(sizes).save_pretrained(model / "text_encoder")
    _write_data(folder / "data", size)


def _write_data(folder: Path, size: Size) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from fvd.data.parquet import T2V_SCHEMA

    rng = np.random.default_rng(0)
    frames, height, width = size.latents
    shapes = {"vae_latent": [CHANNELS, *size.latents], "text_embedding": [TEXT_TOKENS, size.text_dim]}
    rows = []
    for index in range(CLIPS):
        row = {"id": str(index), "file_name": "", "caption": "", "media_type": "video", "width": 8 * width}
        row |= {"height": 8 * height, "num_frames": frames, "duration_sec": 1.0, "fps": 16.0}
        for name, shape in shapes.items():
            values = rng.standard_normal(shape).astype(np.float32)
            row |= {f"{name}_bytes": values.tobytes(), f"{name}_shape": shape, f"{name}_dtype": "float32"}
        rows.append(row)
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=T2V_SCHEMA), folder / "data.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a random Wan pipeline and data.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("size", choices=SIZES)
    options = parser.parse_args()
    write(options.folder, SIZES[options.size])


if __name__ == "__main__":
    main()
