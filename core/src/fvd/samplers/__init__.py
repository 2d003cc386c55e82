"""Samplers: denoising loops, with no method's and no family's name in them.

A sampler is a plain function ``(model, latents, *, scheduler, timesteps, generators) -> latents``:

model: a `fvd.samplers.guidance.GuidedModel`, a role with guidance already applied: ``model.predict(x_t, t)``,
    ``model.predict_x0(x_t, t)``, ``model.predict_noise(x_t, t)``, ``model.add_noise(x0, noise, t)``; t is [B].
latents: Gaussian noise [B, C, T, H, W], float32.
scheduler: the family's diffusers scheduler of the kind that the sampler's descriptor asks for, its timesteps already set;
    where the caller gives the timesteps (`SamplerSpec.takes_timesteps`), a fresh one.
timesteps: descending, [S], those at which the network is called.
generators: one `torch.Generator` a sample, on the CPU, for noise drawn on the way.
"""
