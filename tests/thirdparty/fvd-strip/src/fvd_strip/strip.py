import torch

import fvd


class StripValidator(fvd.Validator):
    """All prompts side by side in one file, ``strip.mp4``."""

    def on_train_start(self, request: fvd.ValidationRequest) -> None:
        adapter = self.context.adapter
        self.cond = adapter.encode_prompts([prompt.text for prompt in self.context.prompts])
        if request.plan.guidance_scale != 1.0:
            adapter.ensure_negative_conditioning()

    def log_validation(self, step: int, request: fvd.ValidationRequest) -> list[fvd.Artifact]:
        adapter, prompts, plan = self.context.adapter, self.context.prompts, request.plan
        uncond = None if plan.guidance_scale == 1.0 else adapter.negative_conditioning(len(prompts))
        latents = fvd.sample_latents(
            fvd.GuidedModel(adapter, request.sample_handle, self.cond, uncond, plan.guidance_scale),
            sampler=self.context.load_sampler(plan.sampler_kind),
            shape=self.context.latent_shape,
            steps=plan.sampling_steps[0],
            timesteps=plan.sampling_timesteps,
            shift_timesteps=plan.shift_timesteps,
            seeds=[prompt.seed for prompt in prompts],
        )
        with fvd.folder_written_aside(self.step_dir(step)) as folder:
            fvd.write_video(folder / "strip.mp4", torch.cat(list(adapter.decode(latents)), dim=-1), self.context.fps)
        caption = " | ".join(prompt.text for prompt in prompts)
        return [fvd.Artifact("validation/strip", self.step_dir(step) / "strip.mp4", caption)]
