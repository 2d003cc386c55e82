"""A method's steps without a trainer: for tests of methods. Needs torch.

method = MyMethod.build(run=run, roles=roles, adapter=adapter)
losses = train_step(method, raw_batch, iteration=1)
"""

from __future__ import annotations

import torch

from fvd.data.spec import RawBatch
from fvd.methods import Method
from fvd.metrics import StepMetrics
from fvd.rng import StepRandom
from fvd.step_contract import checked_losses, checked_roles_to_update


def step_random(iteration: int, batch_size: int, *, seed: int = 0, first_position: int = 0) -> StepRandom:
    """The randomness that the trainer would hand to a micro-batch of this iteration, on the CPU."""
    return StepRandom.for_step(
        seed=seed, step=iteration, first_position=first_position, batch_size=batch_size, device=torch.device("cpu")
    )


def train_step(method: Method, raw_batch: RawBatch, iteration: int) -> dict[str, float]:
    """One step without a trainer: backpropagate each loss, step the roles due, zero. Returns losses, metrics and counts
    by name, without those of no weight. Gradients are not clipped.

    Raises PluginError where a method breaks the contract of a step, as the trainer does.
    """
    logged = StepMetrics()
    rng = step_random(iteration, raw_batch.batch_size, seed=method.run.training.seed)
    for loss in checked_losses(method, raw_batch, iteration, rng):
        method.adapter.backward(loss.value, loss.ctx)
        for name, value in {loss.name: loss.value, **loss.metrics, **loss.counts}.items():
            logged.mean(name, value)
    for role in checked_roles_to_update(method, iteration):
        method.roles[role].step()
    for handle in method.roles.trainable:
        for optimizer in handle.optimizers.values():
            optimizer.zero_grad()
    method.on_step_end(iteration)
    return logged.to_host()
