"""A random LTX-Video pipeline of a few hundred thousand weights."""

from pathlib import Path

from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel

import fvd
from fvd.diffusers_format import tiny_t5, write_tiny_pipeline

PLAN = fvd.ClipPlan(fps=25.0, geometry=fvd.VideoGeometry(num_frames=9, height=64, width=64))


def write_tiny(folder: Path) -> None:
    write_tiny_pipeline(folder, make_pipeline, plan=PLAN)


def make_pipeline() -> LTXPipeline:
    wide, deep = (8, 8, 8, 8), (1, 1, 1, 1, 1)
    vae = AutoencoderKLLTXVideo(
        3, 3, 8, wide, decoder_block_out_channels=wide, layers_per_block=deep, decoder_layers_per_block=deep
    )
    transformer = LTXVideoTransformer3DModel(
        8, 8, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32, num_layers=2, caption_channels=16
    )
    return LTXPipeline(FlowMatchEulerDiscreteScheduler(), vae, *tiny_t5(text_dim=16), transformer)
