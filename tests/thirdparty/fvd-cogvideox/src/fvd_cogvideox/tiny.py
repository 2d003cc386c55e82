"""A random CogVideoX pipeline of a few hundred thousand weights, with the schedule of CogVideoX-2b."""

from pathlib import Path

from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel

import fvd
from fvd.diffusers_format import tiny_t5, write_tiny_pipeline

PLAN = fvd.ClipPlan(fps=16.0, geometry=fvd.VideoGeometry(num_frames=9, height=64, width=64))
SCHEDULE = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}


def write_tiny(folder: Path) -> None:
    write_tiny_pipeline(folder, make_pipeline, plan=PLAN)


def make_pipeline(rotary: bool = False) -> CogVideoXPipeline:
    vae = AutoencoderKLCogVideoX(block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2)
    transformer = CogVideoXTransformer3DModel(
        2, 16, 4, 4, time_embed_dim=8, text_embed_dim=16, num_layers=2, use_rotary_positional_embeddings=rotary
    )
    text_encoder, tokenizer = tiny_t5(text_dim=16)
    return CogVideoXPipeline(tokenizer, text_encoder, vae, transformer, CogVideoXDDIMScheduler(**SCHEDULE))
