from itertools import pairwise

import torch
from torch import Tensor

import fvd


@torch.no_grad()
def sample_heun(model: fvd.GuidedModel, latents: Tensor, *, scheduler, timesteps: Tensor, generators) -> Tensor:
    """Heun's method on d x / d sigma = velocity, which is `predict` where the family is flow matching; sigma = t / N."""
    t = torch.cat([timesteps.to(latents.device, torch.float32), torch.zeros(1, device=latents.device)])
    for now, after in pairwise(t):
        step = (after - now) / model.num_train_timesteps
        slope = model.predict(latents, now.expand(len(latents)))
        if after > 0:
            slope = (slope + model.predict(latents + step * slope, after.expand(len(latents)))) / 2
        latents = latents + step * slope
    return latents
