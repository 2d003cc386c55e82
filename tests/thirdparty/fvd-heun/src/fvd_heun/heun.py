from itertools import pairwise

import torch
from torch import Tensor

import fvd


@torch.no_grad()
def sample_heun(model: fvd.GuidedModel, latents: Tensor, *, scheduler, timesteps: Tensor, generators) -> Tensor:
    """Heun's method on d(x / a) / d(s / a) = noise, where x_t = a x0 + s noise: any schedule, whatever a network predicts
    (Karras et al. 2022, algorithm 2). The last step, to timestep 0, is x0 itself."""
    times = [t.to(latents.device).expand(len(latents)) for t in timesteps]
    for now, after in pairwise(times):
        (a, s), (b, u) = scales(model, now), scales(model, after)
        x0 = model.predict_x0(latents, now)
        noise = (latents - a * x0) / s
        guess = b * x0 + u * noise  # Euler's method, which is DDIM
        if a.all():  # there is no x / a at the far end of flow matching, where a = 0
            there = (guess - b * model.predict_x0(guess, after)) / u
            guess = b * (latents / a + (u / b - s / a) * (noise + there) / 2)
        latents = guess
    return model.predict_x0(latents, times[-1])


def scales(model: fvd.GuidedModel, t: Tensor) -> tuple[Tensor, Tensor]:
    """a and s of timestep t [B], each [B, 1, 1, 1, 1]."""
    one = torch.ones(len(t), 1, 1, 1, 1, device=t.device)
    return model.add_noise(one, 0 * one, t), model.add_noise(0 * one, one, t)
