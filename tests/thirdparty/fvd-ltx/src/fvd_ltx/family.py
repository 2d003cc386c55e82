"""LTX-Video (HaCohen et al. 2024): flow matching on latents of 32 × 32 pixels and 8 frames, one token each."""

from diffusers import LTXVideoTransformer3DModel
from transformers import T5EncoderModel

import fvd
from fvd.diffusers_format import DiffusersComponents, DiffusersFamily


class LtxComponents(DiffusersComponents):
    vae_name = "AutoencoderKLLTXVideo"
    text_encoder_class = T5EncoderModel
    clip_plan = fvd.ClipPlan(fps=25.0, geometry=fvd.VideoGeometry(num_frames=161, height=512, width=704))
    max_text_tokens, temporal_ratio, spatial_ratio = 128, 8, 32

    def encode_tokens(self, ids, mask):
        """LTX's encoder sees the padding; its transformer does not."""
        return self.text_encoder()(ids).last_hidden_state[0, : int(mask.sum())]

    def decode_latents(self, latents):
        """Newer VAEs finish denoising while they decode; at timestep 0 there is nothing left to do, as in diffusers."""
        timestep = latents.new_zeros(1) if self.vae().config.timestep_conditioning else None
        return self.vae().decode(latents, timestep).sample


class LtxAdapter(fvd.TextToVideoAdapter):
    def predict(self, handle, x_t, t, cond, *, attn_kind="dense"):
        """The velocity. The network counts positions in seconds and pixels."""
        size = frames, height, width = x_t.shape[2:]
        scale = self.components.temporal_ratio / self.components.default_plan.fps, 32, 32
        tokens = x_t.float().flatten(2).transpose(1, 2)
        with self.autocast():
            velocity = handle.modules["transformer"](tokens, cond.embeddings, t, cond.mask, frames, height, width, scale).sample
        return velocity.float().transpose(1, 2).unflatten(2, size)


class LtxFamily(DiffusersFamily):
    name = "ltx"
    adapter_class = LtxAdapter
    components_class = LtxComponents
    pipeline_names = ("LTXPipeline", "LTXConditionPipeline")
    transformer_class = LTXVideoTransformer3DModel
    text_dim_key = "caption_channels"
