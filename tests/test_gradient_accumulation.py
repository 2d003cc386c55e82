"""Gradient accumulation equals one large batch: the same samples, in micro-batches or at once, move every role alike.

With clipping and averages on, over several updates of both roles, on points (both toy families) and on small videos. float32:
the sums are added up in another order, and that is all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from small_video import SmallVideoAdapter, small_raw_batch, small_roles, small_run
from torch import Tensor

import fvd
from fvd.signals import StopSignals
from fvd.testing.toy.workbench import toy_batch, toy_family, toy_method
from fvd.trackers.base import TrackerGroup
from fvd.trainer import Trainer
from fvd_dmd2.config import DMD2Config
from fvd_dmd2.method import DMD2Method
from fvd_finetune.config import FinetuneConfig
from fvd_finetune.method import FinetuneMethod

SAMPLES, STEPS = 8, 4
ROLES = {"finetune": {"student": True}, "dmd2": {"student": True, "teacher": False, "critic": True}}
CONFIGS: dict[str, tuple[type[fvd.Method], fvd.MethodConfig]] = {
    "finetune": (FinetuneMethod, FinetuneConfig(timestep_density="logit_normal")),
    "dmd2": (DMD2Method, DMD2Config(generator_update_interval=2)),
}
# The step of plain SGD is the (clipped) gradient: nothing hides a wrong scale, as Adam's quotient would.
TRAINING = {"optimizer": "SGD", "optimizer_arguments": {"momentum": 0.5}, "learning_rate": 0.05, "max_grad_norm": 0.3}
EMA = {"ema": {"decay": 0.5, "start_step": 1}}

Batches = Callable[[int, int], fvd.RawBatch]  # (first sample, how many)


def on_points(predicts: str, method: str, training: dict[str, object]) -> tuple[fvd.Method, Batches]:
    family = toy_family(predicts)
    method_class, config = CONFIGS[method]
    roles = {name: EMA for name, trained in ROLES[method].items() if trained}
    built = toy_method(method_class, config, ROLES[method], family=family, training=training, roles=roles)
    return built, lambda first, count: toy_batch(family, count, first=first)


def on_videos(method: str, training: dict[str, object]) -> tuple[fvd.Method, Batches]:
    roles, adapter = small_roles(ROLES[method]), SmallVideoAdapter()
    method_class, config = CONFIGS[method]
    run = small_run(roles, config, training=training)
    said = {
        name: role.model_copy(update={"ema": fvd.EmaConfig.model_validate(EMA["ema"])}) if role.trainable else role
        for name, role in run.roles.items()
    }
    built = method_class.build(run=run.model_copy(update={"roles": said}), roles=roles, adapter=adapter)
    built.on_train_start()
    everything = small_raw_batch(SAMPLES * STEPS)

    def batch(first: int, count: int) -> fvd.RawBatch:
        part = slice(first, first + count)
        tensors = {name: tensor[part] for name, tensor in everything.tensors.items()}
        return fvd.RawBatch(tensors, everything.dropped[part], everything.info[part])

    return built, batch


BUILDERS = {
    "points": lambda method, training: on_points("velocity", method, training),
    "noise_points": lambda method, training: on_points("noise", method, training),
    "videos": on_videos,
}


def trained(where: str, name: str, micro_batches: int, **training: object) -> tuple[dict[str, list[Tensor]], list[dict]]:
    """What STEPS steps have made of the weights and the averages, and the metrics of each."""
    size = SAMPLES // micro_batches
    sizes = {"train_batch_size": size, "gradient_accumulation_steps": micro_batches}
    method, batch = BUILDERS[where](name, {**TRAINING, **sizes, **training})
    runtime = SimpleNamespace(
        config=method.run,
        roles=method.roles,
        adapter=method.adapter,
        method=method,
        device=torch.device("cpu"),
        start_step=0,
        resume_from=None,
    )
    trainer = Trainer(runtime, TrackerGroup({}), StopSignals())
    batches: Iterator[fvd.RawBatch] = (batch(first, size) for first in itertools.count(0, size))
    metrics = []
    for step in range(1, STEPS + 1):
        trainer.step = step
        metrics.append(trainer.train_step(batches))
    made = {}
    for handle in method.roles.trainable:
        made[handle.name] = [parameter.detach().clone() for parameter in handle.trainable_parameters()]
        made[f"{handle.name} averaged"] = list(handle.ema.tensors.values())
    return made, metrics


def distance(first: list[Tensor], second: list[Tensor]) -> float:
    """Relative, over all tensors."""
    difference = sum((one.double() - other.double()).square().sum() for one, other in zip(first, second, strict=True))
    return (difference / sum(tensor.double().square().sum() for tensor in second)).sqrt().item()


@pytest.mark.parametrize("micro_batches", [2, 8])
@pytest.mark.parametrize("method", ["finetune", "dmd2"])
@pytest.mark.parametrize("where", ["points", "noise_points", "videos"])
def test_micro_batches_are_one_large_batch(where, method, micro_batches):
    whole, expected = trained(where, method, 1)
    parts, measured = trained(where, method, micro_batches)
    assert whole.keys() == parts.keys()
    for name in whole:
        assert distance(parts[name], whole[name]) < 1e-6, name
    for step, want in zip(measured, expected, strict=True):
        for name in (key for key in want if key.startswith(("grad_norm/", "clipped/", "skipped/")) or key.endswith("loss")):
            assert step[name] == pytest.approx(want[name], rel=1e-5), name
    clipped = [step[key] for step in expected for key in step if key.startswith("clipped/")]
    assert sum(clipped) > 0  # the clip is at work


@pytest.mark.parametrize("method", ["finetune", "dmd2"])
def test_with_adamw_too(method):
    """Its quotient of moments magnifies rounding where a gradient is near 0."""
    adamw = {"optimizer": "AdamW", "optimizer_arguments": {}, "learning_rate": 1e-3}
    whole, _ = trained("videos", method, 1, **adamw)
    parts, _ = trained("videos", method, 4, **adamw)
    for name in whole:
        assert distance(parts[name], whole[name]) < 1e-5, name


def test_the_weights_move_more_than_the_comparison_allows():
    """Else anything would be equal."""
    moved, _ = trained("videos", "dmd2", 1)
    stayed, _ = trained("videos", "dmd2", 1, learning_rate=0.0)
    for name in moved:
        assert distance(moved[name], stayed[name]) > 1e-3, name
