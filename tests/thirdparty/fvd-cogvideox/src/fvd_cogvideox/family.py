"""CogVideoX (Yang et al. 2024): v-prediction on a DDPM schedule with zero terminal SNR. Version 1.0, 2B and 5B."""

from diffusers import CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from transformers import T5EncoderModel

import fvd
from fvd.diffusers_format import DiffusersComponents, DiffusersFamily


class CogVideoXComponents(DiffusersComponents):
    vae_name = "AutoencoderKLCogVideoX"
    text_encoder_class = T5EncoderModel
    clip_plan = fvd.ClipPlan(fps=8.0, geometry=fvd.VideoGeometry(num_frames=49, height=480, width=720))
    max_text_tokens, temporal_ratio, spatial_ratio, patch_size = 226, 4, 8, 2

    def check_geometry(self, geometry):
        """The VAE gives the first frame back as one only where the latent frames are odd in number."""
        super().check_geometry(geometry)
        if geometry.num_frames % 8 != 1:
            raise fvd.FvdError(f"CogVideoX cannot make {geometry.num_frames} frames", cure="Use 8k + 1: 1, 9, 17, …, 49.")

    def encode_tokens(self, ids, mask):
        """Encoder and transformer both see the padding."""
        return self.text_encoder()(ids).last_hidden_state[0]


class CogVideoXAdapter(fvd.TextToVideoDiffusionAdapter):
    def make_scheduler(self):
        return CogVideoXDDIMScheduler.from_pretrained(self.components.folder / "scheduler")

    def predict(self, handle, x_t, t, cond, *, attn_kind="dense"):
        transformer = handle.modules["transformer"]
        positions = self.positions(transformer.config, *x_t.shape[2:])
        with self.autocast():
            v = transformer(x_t.float().transpose(1, 2), cond.embeddings, t, image_rotary_emb=positions).sample
        return v.float().transpose(1, 2)

    def positions(self, config, frames, height, width):
        """Rotary embeddings, where the network does not add its own."""
        if config.patch_size_t is not None:
            raise fvd.ModelError("this is CogVideoX 1.5, and the family serves 1.0", cure="Use CogVideoX-2b or CogVideoX-5b.")
        if not config.use_rotary_positional_embeddings:
            return None
        grid = height // 2, width // 2
        region = get_resize_crop_region_for_grid(grid, config.sample_width // 2, config.sample_height // 2)
        return get_3d_rotary_pos_embed(config.attention_head_dim, region, grid, frames, device=self.device)


class CogVideoXFamily(DiffusersFamily):
    name = "cogvideox"
    adapter_class = CogVideoXAdapter
    components_class = CogVideoXComponents
    pipeline_names = ("CogVideoXPipeline",)
    transformer_class = CogVideoXTransformer3DModel
    text_dim_key = "text_embed_dim"
