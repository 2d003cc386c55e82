"""A random Wan 2.1 text-to-video pipeline, small enough for a CPU and whole enough for everything fvd does.

Tests, examples and plugin authors get a model without a download: transformer, VAE, UMT5 text encoder, a tokenizer that
works, a scheduler; the layout, classes and compression (8 × 8 pixels, 4 frames) of the real thing. It has learnt nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from diffusers import __version__ as diffusers_version
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from fvd.diffusers_format.loading import quiet
from fvd.diffusers_format.tiny import VOCABULARY_SIZE, save_tiny_tokenizer
from fvd.errors import ModelError
from fvd.files import folder_written_aside
from fvd.model_folder import write_json

TEXT_DIM = 32
LATENT_CHANNELS = 16
CLIP_PLAN = {"fps": 16.0, "num_frames": 9, "height": 64, "width": 64}

_MODEL_INDEX = {
    "_class_name": "WanPipeline",
    "_diffusers_version": diffusers_version,
    "boundary_ratio": None,
    "expand_timesteps": False,
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}


def make_tiny_wan(out: Path, *, seed: int = 0, overwrite: bool = False) -> None:
    """Write the tiny pipeline into ``out``; equal seeds give equal bytes.

    It is written beside ``out`` and moved there when whole. Raises FvdError when ``out`` exists and is not empty, unless
    ``overwrite`` and it is a model folder; and when it cannot be written.
    """
    _check_target(out, overwrite)
    try:
        with folder_written_aside(out) as model:
            _write_pipeline(model, seed)
    except SafetensorError as error:
        raise ModelError(f"cannot write {out}: {error}", cure="Free some space, or name another folder.") from error


def _check_target(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ModelError(f"{out} is a file", cure="Name another folder.")
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise ModelError(f"{out} exists and is not empty", cure="Name another folder, or add --overwrite to replace it.")
    if not (out / "model_index.json").is_file():
        raise ModelError(f"{out} is not a model folder, so it is not replaced", cure="Name another folder.")


def _write_pipeline(out: Path, seed: int) -> None:
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        make_tiny_transformer().save_pretrained(out / "transformer")
        _make_vae().save_pretrained(out / "vae")
        _make_text_encoder().save_pretrained(out / "text_encoder")
    save_tiny_tokenizer(out / "tokenizer")
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    scheduler.save_pretrained(out / "scheduler")
    for name, content in (("model_index.json", _MODEL_INDEX), ("fvd.json", CLIP_PLAN)):
        write_json(out / name, content)


def make_tiny_transformer() -> WanTransformer3DModel:
    """Drawn from torch's global generator. Wide enough (96 > 64 = one patch) to carry all of x_t through."""
    return WanTransformer3DModel(
        num_attention_heads=8,
        attention_head_dim=12,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=32,
        ffn_dim=192,
        num_layers=2,
        rope_max_seq_len=64,
    )


def _make_text_encoder() -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=VOCABULARY_SIZE, d_model=TEXT_DIM, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    return UMT5EncoderModel(config)


def _make_vae() -> AutoencoderKLWan:
    vae = AutoencoderKLWan(base_dim=8, z_dim=LATENT_CHANNELS, dim_mult=[1, 2, 2, 2], num_res_blocks=1)
    vae.eval()
    _calibrate(vae)
    return vae


@torch.no_grad()
def _calibrate(vae: AutoencoderKLWan) -> None:
    """Scale the last layers of a random VAE so that its numbers are of the size of a trained one's.

    Latents of coloured, moving patterns get the mean and standard deviation that the configuration states; decoded
    standard normal latents get a standard deviation of about 0.4 in [-1, 1]. Factors are rounded, so that the last bits
    of a sum, which depend on the number of threads, do not reach the weights.
    """
    videos = torch.nn.functional.interpolate(torch.rand(4, 3, 3, 8, 8), size=(9, 64, 64), mode="trilinear") * 2 - 1
    mean, std = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
    latents = vae.encode(videos).latent_dist.mode()
    scale = _round(std / latents.std(dim=(0, 2, 3, 4)))
    offset = mean - scale * latents.mean(dim=(0, 2, 3, 4))
    _rescale(vae.quant_conv, scale, _round(offset))
    normal = torch.randn(2, LATENT_CHANNELS, 3, 8, 8)
    latents = normal * std.view(1, -1, 1, 1, 1) + mean.view(1, -1, 1, 1, 1)
    decoded = _decode_unclamped(vae, latents)
    scale = _round(0.4 / decoded.std(dim=(0, 2, 3, 4)))
    _rescale(vae.decoder.conv_out, scale, _round(-scale * decoded.mean(dim=(0, 2, 3, 4))))


def _decode_unclamped(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """What the decoder's last layer says, frame by frame, before `decode` clamps it to [-1, 1]."""
    chunks: list[Tensor] = []
    watch = vae.decoder.conv_out.register_forward_hook(lambda module, inputs, output: chunks.append(output.clone()))
    vae.decode(latents)
    watch.remove()
    return torch.cat(chunks, dim=2)


def _rescale(conv: nn.Conv3d, scale: Tensor, offset: Tensor) -> None:
    """``conv`` followed by ``scale * output + offset`` on its first ``len(scale)`` channels."""
    count = len(scale)
    conv.weight[:count] *= scale.view(-1, 1, 1, 1, 1)
    assert conv.bias is not None
    conv.bias[:count] = conv.bias[:count] * scale + offset


def _round(values: Tensor) -> Tensor:
    return torch.round(values * 100) / 100
