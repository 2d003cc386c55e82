"""Tiny Wan pipelines and prepared data of several sizes, written by `python benchmarks/inputs.py FOLDER SIZE`.

In a process of their own: making them takes torch, and a benchmark's own process stays small.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path


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


SIZES = {
    "40k": Size(layers=3, heads=2, head_dim=12, ffn_dim=96, freq_dim=32, latents=(5, 8, 8), batch_size=2),
    "5m": Size(layers=8, heads=8, head_dim=24, ffn_dim=768, freq_dim=256, latents=(5, 16, 16), batch_size=1),
}
CLIPS = 16
TEXT_DIM = 32
CHANNELS = 16


def write(folder: Path, size: Size) -> None:
    """``folder/model``: a pipeline with random weights; ``folder/data``: ``CLIPS`` clips of noise, with texts of noise."""
    import torch
    from diffusers import WanTransformer3DModel

    from fvd_wan.tiny import make_tiny_wan

    model = folder / "model"
    make_tiny_wan(model)
    shutil.rmtree(model / "transformer")
    torch.manual_seed(0)
    WanTransformer3DModel(
        num_attention_heads=size.heads,
        attention_head_dim=size.head_dim,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=size.freq_dim,
        ffn_dim=size.ffn_dim,
        num_layers=size.layers,
        rope_max_seq_len=64,
    ).save_pretrained(model / "transformer")
    _write_data(folder / "data", size)


def _write_data(folder: Path, size: Size) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from fvd.data.parquet import T2V_SCHEMA

    rng = np.random.default_rng(0)
    frames, height, width = size.latents
    shapes = {"vae_latent": [CHANNELS, *size.latents], "text_embedding": [8, TEXT_DIM]}
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
    parser = argparse.ArgumentParser(description="Write a tiny Wan pipeline and data.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("size", choices=SIZES)
    options = parser.parse_args()
    write(options.folder, SIZES[options.size])


if __name__ == "__main__":
    main()
