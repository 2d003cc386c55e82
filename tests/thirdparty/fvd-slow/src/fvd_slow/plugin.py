from itertools import pairwise

import torch  # half a second in every `fvd` command: it belongs into another module, which `target` names

import fvd


@fvd.hookimpl
def fvd_samplers() -> list[fvd.SamplerSpec]:
    return [fvd.SamplerSpec(name="slow", target="fvd_slow.plugin:sample_euler", summary="Euler's method, one call a step")]


@torch.no_grad()
def sample_euler(model, latents, *, scheduler, timesteps, generators):
    """d x / d sigma = velocity, which is `predict` where the family is flow matching; sigma = t / num_train_timesteps."""
    t = torch.cat([timesteps.float(), torch.zeros(1)]).to(latents.device)
    for now, after in pairwise(t):
        velocity = model.predict(latents, now.expand(len(latents)))
        latents = latents + (after - now) / model.num_train_timesteps * velocity
    return latents
