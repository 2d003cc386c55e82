from itertools import pairwise

import torch  # half a second in every `fvd` command: it belongs into another module, which `target` names

import fvd


@fvd.hookimpl
def fvd_samplers() -> list[fvd.SamplerSpec]:
    return [fvd.SamplerSpec(name="slow", target="fvd_slow.plugin:sample_ddim", summary="DDIM", takes_timesteps=True)]


@torch.no_grad()
def sample_ddim(model, latents, *, scheduler, timesteps, generators):
    """From t to the next timestep with the same x0 and noise (Song et al. 2021, eta = 0); the last x0 is the result."""
    times = [t.to(latents.device).expand(len(latents)) for t in timesteps]
    for now, after in pairwise(times):
        x0, noise = model.predict_x0(latents, now), model.predict_noise(latents, now)
        latents = model.add_noise(x0, noise, after)
    return model.predict_x0(latents, times[-1])
