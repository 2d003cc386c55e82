"""B104, B105, B106, B111: the algebra of noise levels, whatever the parametrisation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fvd.adapters import Conditioning
from fvd.roles import RoleHandle
from fvd.testing.conformance.asserts import require, require_close, require_tensor
from fvd.testing.conformance.examination import Subject
from fvd.testing.conformance.family_build import FamilyBench

END_TOLERANCE = 0.1
"""Root mean square by which the ends of a schedule may miss data and noise of unit size: some keep 7 % of the data."""
IDENTITY_TOLERANCE = 1e-3
FRACTIONS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of `num_train_timesteps`. Not the ends, where x0 or noise is not determined by the other two."""


def add_noise_end_points(subject: Subject) -> None:
    """B104: x_t is linear in x0 and noise, is data at 0 and noise at the end, and noisier in between the later it is."""
    bench = subject.family
    bench.require_primitives("add_noise", "num_train_timesteps")
    x0, noise = bench.noise("x0"), bench.noise()
    add_noise = bench.adapter.add_noise
    steps = float(bench.adapter.num_train_timesteps)
    require(steps > 0, f"num_train_timesteps is {steps:g}")
    start, end = add_noise(x0, noise, bench.t(0.0)), add_noise(x0, noise, bench.t(1.0))
    require_tensor(start, x0.shape, "add_noise")
    require(_rms(start - x0) < END_TOLERANCE, f"add_noise at timestep 0 must be x0, it is off by {_rms(start - x0):.2g}")
    message = f"add_noise at timestep {steps:g} must be the noise, it is off by {_rms(end - noise):.2g}"
    require(_rms(end - noise) < END_TOLERANCE, message)
    require_close(
        add_noise(10 * x0, -noise, bench.t(0.3)),
        10 * add_noise(x0, torch.zeros_like(noise), bench.t(0.3)) - add_noise(torch.zeros_like(x0), noise, bench.t(0.3)),
        "add_noise must be linear in x0 and noise",
    )
    zero = torch.zeros_like(x0)
    levels = [_rms(add_noise(zero, noise, bench.t(fraction))) for fraction in (0.0, *FRACTIONS, 1.0)]
    require(
        levels == sorted(levels), f"the noise in x_t must grow with t, it is {', '.join(f'{level:.3g}' for level in levels)}"
    )
    half = add_noise(x0.bfloat16(), noise, bench.t(0.5)).dtype
    require(half == torch.bfloat16, f"add_noise must return the dtype of x0, got {half} for bfloat16")


def _rms(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt())


def identities(subject: Subject) -> None:
    """B105: noising the predicted x0 with the predicted noise gives x_t back, and the training target that both imply is
    the prediction. Without a parametrisation in sight, that is all there is to say."""
    bench = subject.family
    bench.require_primitives("predict", "predict_x0", "predict_noise", "add_noise", "training_target")
    adapter, cond = bench.adapter, bench.batch.cond
    for handle in (bench.student, bench.teacher):
        for fraction in FRACTIONS:
            t = bench.t(fraction)
            x_t = adapter.add_noise(bench.x0, bench.noise(), t)
            with torch.no_grad():
                prediction = adapter.predict(handle, x_t, t, cond)
                x0, noise = adapter.predict_x0(handle, x_t, t, cond), adapter.predict_noise(handle, x_t, t, cond)
            for name, value in (("predict", prediction), ("predict_x0", x0), ("predict_noise", noise)):
                require_tensor(value, x_t.shape, f"{name} at t = {t[0]:g}")
            message = f"add_noise(predict_x0, predict_noise, t) must be x_t at t = {t[0]:g}"
            require_close(adapter.add_noise(x0, noise, t), x_t, message, tolerance=IDENTITY_TOLERANCE)
            target = require_tensor(adapter.training_target(x0, noise, t), x_t.shape, "training_target")
            message = f"training_target(predict_x0, predict_noise, t) must be predict at t = {t[0]:g}"
            require_close(target, prediction, message, tolerance=IDENTITY_TOLERANCE)


Call = Callable[[Tensor, Tensor, Tensor, Conditioning], Tensor]
"""(x, noise, t, cond) -> what a primitive makes of them."""


@torch.no_grad()
def samples_are_independent(subject: Subject) -> None:
    """B106: every primitive with timesteps [B], against one sample at a time."""
    bench = subject.family
    bench.require_primitives("predict")
    x_t, noise, t, cond = bench.noise(), bench.noise("other"), bench.t(0.2, 0.8), bench.batch.cond
    alone = [bench.single(position).cond for position in range(len(t))]
    for name, call in _calls(bench):
        batched = call(x_t, noise, t, cond)
        singles = [call(x_t[b : b + 1], noise[b : b + 1], t[b : b + 1], alone[b]) for b in range(len(t))]
        require_close(batched, torch.cat(singles), f"{name} of a batch must be that of its samples, each at its own timestep")
    other = torch.stack([x_t[0], 3 * x_t[1] + 1])
    before, after = (bench.adapter.predict(bench.student, x, t, cond)[0] for x in (x_t, other))
    require_close(after, before, "predict of a sample must not depend on its neighbour")


def _calls(bench: FamilyBench) -> Iterator[tuple[str, Call]]:
    adapter, provides = bench.adapter, bench.spec.provides
    predictions = {"predict": adapter.predict, "predict_x0": adapter.predict_x0, "predict_noise": adapter.predict_noise}
    for handle in (bench.student, bench.teacher):
        for name, function in predictions.items():
            if name in provides:
                yield f"{name} ({handle.name})", _on(function, handle)
    if "add_noise" in provides:
        yield "add_noise", lambda x, noise, t, cond: adapter.add_noise(x, noise, t)
    if "training_target" in provides:
        yield "training_target", lambda x, noise, t, cond: adapter.training_target(x, noise, t)
    if "shift_and_clamp_timestep" in provides:
        yield "shift_and_clamp_timestep", lambda x, noise, t, cond: adapter.shift_and_clamp_timestep(t)


def _on(predict: Callable[..., Tensor], handle: RoleHandle) -> Call:
    return lambda x, noise, t, cond: predict(handle, x, t, cond)


def shift_and_clamp(subject: Subject) -> None:
    """B111. A schedule that is a table may end one step before num_train_timesteps."""
    bench = subject.family
    bench.require_primitives("shift_and_clamp_timestep", "num_train_timesteps")
    steps = float(bench.adapter.num_train_timesteps)
    t = torch.linspace(0, steps, 101)
    shifted = require_tensor(bench.adapter.shift_and_clamp_timestep(t), t.shape, "shift_and_clamp_timestep")
    require(bool((shifted.diff() >= 0).all()), "shift_and_clamp_timestep must not fall anywhere")
    require(float(shifted[0]) == 0, f"shift_and_clamp_timestep(0) must be 0, it is {float(shifted[0]):g}")
    last = float(shifted[-1])
    require(steps - 1 <= last <= steps, f"shift_and_clamp_timestep({steps:g}) must stay {steps:g}, it is {last:g}")
    outside = bench.adapter.shift_and_clamp_timestep(torch.tensor([-0.1 * steps, 1.2 * steps]))
    inside = bool((outside >= 0).all()) and bool((outside <= steps).all())
    require(inside, f"shift_and_clamp_timestep must clamp to [0, {steps:g}], got {outside.tolist()}")
