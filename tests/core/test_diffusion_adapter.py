"""Variance-preserving diffusion: identities, diffusers' own schedulers and float64 references, the shift law, the ends."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

import fvd
from fvd.diffusion import DiffusionSchedule
from fvd.errors import ModelError
from fvd.roles import RoleHandle

TYPES = {"noise": "epsilon", "v": "v_prediction", "x0": "sample"}
SHAPE = (4, 3, 2, 4, 4)


def draw(seed=0, shape=SHAPE):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def table(**settings):
    return DDPMScheduler(**settings).alphas_cumprod


ZERO_SNR = table(rescale_betas_zero_snr=True)


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.7))


class LinearAdapter(fvd.DiffusionAdapter):
    """A network that answers 0.7 x_t."""

    def __init__(self, schedule, flow_shift=1.0):
        self.device, self.schedule, self.flow_shift = torch.device("cpu"), schedule, flow_shift

    def prepare_batch(self, raw_batch, *, latents_source):
        raise NotImplementedError

    def predict(self, handle, x_t, t, cond, *, attn_kind="dense"):
        return handle.modules["transformer"].scale * x_t.float()


def adapter_of(kind, **settings):
    return LinearAdapter(DiffusionSchedule(table(**settings), kind))


HANDLE = RoleHandle(name="student", family="linear", trainable=False, modules={"transformer": Linear()})


# --- identities ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", TYPES)
def test_the_true_output_gives_back_x0_and_noise(kind):
    """For whole and fractional timesteps, below, inside and above the table."""
    schedule = DiffusionSchedule(table(), kind)
    x0, noise, t = draw(1), draw(2), torch.tensor([0.0, 317.3, 640.0, 1000.0])
    x_t = schedule.add_noise(x0, noise, t)
    output = schedule.training_target(x0, noise, t)
    assert output.dtype == torch.float32
    # at the last timestep α is 0.006: float32 loses what the division by it multiplies
    torch.testing.assert_close(schedule.prediction_to_x0(output, x_t, t), x0, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(schedule.prediction_to_noise(output, x_t, t), noise, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", TYPES)
def test_predictions_of_the_adapter_fit_together(kind):
    """x_t = α x0̂ + σ noisê, and the network's output is the target of (x0̂, noisê), whatever the network says."""
    adapter = adapter_of(kind)
    x_t, t = draw(3), torch.tensor([5.0, 250.0, 700.5, 990.0])
    with torch.no_grad():
        x0, noise = adapter.predict_x0(HANDLE, x_t, t, None), adapter.predict_noise(HANDLE, x_t, t, None)
        output = adapter.predict(HANDLE, x_t, t, None)
    assert x0.dtype == noise.dtype == torch.float32
    torch.testing.assert_close(adapter.add_noise(x0, noise, t), x_t, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(adapter.training_target(x0, noise, t), output, atol=1e-4, rtol=1e-4)


def test_float64_reference():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    signal = torch.cumprod(1 - betas, 0)
    x0, noise, t = draw(1), draw(2), torch.tensor([0.25, 99.75, 500.5, 998.5])
    power = torch.stack([(1 - t[i] % 1) * signal[int(t[i])] + t[i] % 1 * signal[int(t[i]) + 1] for i in range(4)])
    alpha, sigma = power.sqrt().view(4, 1, 1, 1, 1), (1 - power).sqrt().view(4, 1, 1, 1, 1)
    schedule = DiffusionSchedule(signal, "v")
    x_t = alpha * x0.double() + sigma * noise.double()
    v = alpha * noise.double() - sigma * x0.double()
    close = {"atol": 1e-6, "rtol": 1e-6}
    torch.testing.assert_close(schedule.add_noise(x0, noise, t).double(), x_t, **close)
    torch.testing.assert_close(schedule.training_target(x0, noise, t).double(), v, **close)
    guess = draw(5)
    torch.testing.assert_close(
        schedule.prediction_to_x0(guess, x_t, t).double(), alpha * x_t - sigma * guess.double(), atol=1e-6, rtol=1e-5
    )


def test_half_precision_in_half_precision_out_and_float32_between():
    schedule = DiffusionSchedule(table(), "v")
    x0, noise, t = draw(1).bfloat16(), draw(2), torch.tensor([10.0, 300.0, 600.0, 900.0])
    x_t = schedule.add_noise(x0, noise, t)
    assert x_t.dtype == torch.bfloat16
    assert torch.equal(x_t, schedule.add_noise(x0.float(), noise, t).bfloat16())
    assert schedule.prediction_to_x0(x0, x_t, t).dtype == torch.float32


def test_a_timestep_a_frame():
    schedule = DiffusionSchedule(table(), "v")
    x0, noise, t = draw(1), draw(2), torch.tensor([[3.0, 400.0]] * 4)
    x_t = schedule.add_noise(x0, noise, t)
    for frame in range(2):
        expected = schedule.add_noise(x0[:, :, frame], noise[:, :, frame], t[:, frame])
        torch.testing.assert_close(x_t[:, :, frame], expected)


# --- diffusers as an independent reference -----------------------------------------------------------------------------
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_diffusers_noises_and_targets_alike(beta_schedule, zero_snr):
    theirs = DDPMScheduler(beta_schedule=beta_schedule, rescale_betas_zero_snr=zero_snr)
    schedule = DiffusionSchedule(theirs.alphas_cumprod, "v")
    x0, noise, t = draw(1), draw(2), torch.tensor([0, 17, 500, 999])
    close = {"atol": 2e-6, "rtol": 1e-5}
    torch.testing.assert_close(schedule.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t), **close)
    torch.testing.assert_close(schedule.training_target(x0, noise, t), theirs.get_velocity(x0, noise, t), **close)


@pytest.mark.parametrize("kind", TYPES)
def test_diffusers_ddim_sees_the_same_x0(kind):
    theirs = DDIMScheduler(prediction_type=TYPES[kind], clip_sample=False)
    theirs.set_timesteps(1000)
    schedule = DiffusionSchedule(theirs.alphas_cumprod, kind)
    x_t, output = draw(1, SHAPE[:1] + SHAPE[1:]), draw(2)
    for t in (1, 250, 640, 999):
        step = theirs.step(output, t, x_t)
        mine = schedule.prediction_to_x0(output, x_t, torch.full((4,), t))
        torch.testing.assert_close(mine, step.pred_original_sample, atol=1e-4, rtol=1e-4)


# --- the shift ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shift", [0.3, 1.0, 2.0, 5.0])
def test_the_shift_multiplies_the_ratio_of_noise_to_signal(shift):
    schedule = DiffusionSchedule(table(), "v")
    t = torch.tensor([60.0, 123.4, 300.0, 451.5])
    alpha, sigma = schedule.signal_and_noise(t)
    shifted_alpha, shifted_sigma = schedule.signal_and_noise(schedule.shift(t, shift))
    torch.testing.assert_close(shifted_sigma / shifted_alpha, shift * sigma / alpha, atol=0, rtol=1e-5)


def test_the_shift_is_monotone_composes_and_stays_in_the_table():
    schedule = DiffusionSchedule(table(), "v")
    t = torch.linspace(0, 1000, 4001)
    assert torch.equal(schedule.shift(t, 1.0), t.clamp(0, 999))
    for shift in (0.2, 3.0, 8.0):
        shifted = schedule.shift(t, shift)
        assert (shifted.diff() >= 0).all()
        assert shifted.min() >= 0
        assert shifted.max() <= 999
        assert ((shifted >= t.clamp(max=999)) if shift > 1 else (shifted <= t)).all()
    inside = torch.linspace(100, 400, 31)
    torch.testing.assert_close(schedule.shift(schedule.shift(inside, 2.0), 1.5), schedule.shift(inside, 3.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(schedule.shift(schedule.shift(inside, 3.0), 1 / 3), inside, atol=1e-3, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"beta_schedule": "scaled_linear"}, {"rescale_betas_zero_snr": True}])
@pytest.mark.parametrize("shift", [0.5, 3.0, 10.0])
def test_the_shift_maps_the_table_onto_itself(shift, settings):
    """The ends stay, nothing is jumped over, and 1 / shift leads back, also where the law leaves the table."""
    schedule = DiffusionSchedule(table(**settings), "v")
    ends = torch.tensor([0.0, 999.0])
    assert torch.equal(schedule.shift(ends, shift), ends)
    assert torch.equal(schedule.shift(torch.tensor([-3.0, 1000.0]), shift), ends)
    t = torch.cat([torch.linspace(0, 1, 10_001), torch.linspace(1, 998, 100_001)[1:], torch.linspace(998, 999, 10_001)[1:]])
    shifted = schedule.shift(t, shift)
    assert (shifted.diff() >= 0).all()
    assert shifted.diff().max() < 0.3
    inside = t[(t > 1) & (shifted < 998)]  # float32 has no more digits where the end is compressed
    torch.testing.assert_close(schedule.shift(schedule.shift(inside, shift), 1 / shift), inside, atol=2e-2, rtol=0)


def test_a_table_of_two_entries_is_shifted_too():
    schedule = DiffusionSchedule(torch.tensor([0.9, 0.2]), "v")
    t = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(schedule.shift(t, 2.0), torch.tensor([0.0, 0.8, 1.0]))


def test_no_family_is_shifted_unasked():
    """A network made without a shift would be trained on other noise levels than it was made with."""
    assert fvd.PipelineConfig().flow_shift == 1.0


def test_the_adapter_uses_its_flow_shift():
    schedule = DiffusionSchedule(table(), "noise")
    t = torch.tensor([0.0, 200.0, 900.0, 5000.0])
    assert torch.equal(LinearAdapter(schedule, 3.0).shift_and_clamp_timestep(t), schedule.shift(t, 3.0))
    assert LinearAdapter(schedule).num_train_timesteps == 1000


# --- the ends ----------------------------------------------------------------------------------------------------------
def test_ends_of_the_table():
    schedule = DiffusionSchedule(table(), "v")
    t = torch.tensor([-5.0, 0.0, 999.0, 1000.0])
    alpha, sigma = schedule.signal_and_noise(t)
    assert alpha[0] == alpha[1]
    assert alpha[2] == alpha[3]
    torch.testing.assert_close(alpha[1:3].double() ** 2, table()[[0, 999]].double(), atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(4))


@pytest.mark.parametrize("kind", ["v", "x0"])
def test_zero_terminal_snr(kind):
    """At the end x_t is the noise itself, and nothing is divided by zero: v says −x0 there."""
    schedule = DiffusionSchedule(ZERO_SNR, kind)
    x0, noise, t = draw(1), draw(2), torch.full((4,), 999.0)
    assert torch.equal(schedule.add_noise(x0, noise, t), noise)
    output = schedule.training_target(x0, noise, t)
    assert torch.equal(output, -x0 if kind == "v" else x0)
    assert torch.equal(schedule.prediction_to_x0(output, noise, t), x0)
    assert torch.equal(schedule.prediction_to_noise(output, noise, t), noise)
    for shift in (0.5, 3.0):
        assert torch.equal(schedule.shift(t, shift), t)


def test_a_noise_predictor_cannot_start_from_pure_noise():
    with pytest.raises(ModelError, match="zero terminal SNR"):
        DiffusionSchedule(ZERO_SNR, "noise")


@pytest.mark.parametrize(
    "values", [[0.9, 0.9, 0.5], [0.5, 0.9], [1.0, 0.5], [0.5, -0.1], [0.5], [[0.9, 0.5]], [0.9, float("nan"), 0.1]]
)
def test_a_table_that_is_no_schedule_is_refused(values):
    with pytest.raises(ModelError, match="alphas_cumprod"):
        DiffusionSchedule(torch.tensor(values), "v")


def test_an_unknown_prediction_type_lists_the_known():
    with pytest.raises(ModelError, match=r"'epsilon'.*\n.*noise, v, x0"):
        DiffusionSchedule(table(), "epsilon")


@pytest.mark.parametrize(
    "theirs", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler, CogVideoXDDIMScheduler]
)
def test_schedules_of_solvers_that_take_x_t_as_it_is(theirs):
    scheduler = theirs()
    schedule = DiffusionSchedule.of(scheduler)
    torch.testing.assert_close(schedule.alphas_cumprod, scheduler.alphas_cumprod.double())
    assert schedule.prediction_type == "noise"
    assert scheduler.num_inference_steps is None  # as it was


@pytest.mark.parametrize("theirs", [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, HeunDiscreteScheduler])
def test_solvers_whose_x_t_is_in_other_units_are_refused(theirs):
    """They divide x_t by α, and start from noise of size σ/α."""
    with pytest.raises(ModelError, match=rf"{theirs.__name__} has x_t in other units.*\n.*DDIMScheduler"):
        DiffusionSchedule.of(theirs())


def test_a_solver_that_changes_what_the_network_sees_is_refused():
    class Halves(DDIMScheduler):
        def scale_model_input(self, sample, timestep=None):
            return sample / 2

    with pytest.raises(ModelError, match="Halves has x_t in other units"):
        DiffusionSchedule.of(Halves())


def test_gradients_reach_the_network():
    handle = dataclasses.replace(HANDLE, modules={"transformer": Linear()})
    x_t = draw(3)
    adapter_of("noise").predict_x0(handle, x_t, torch.full((4,), 400.0), None).square().mean().backward()
    assert handle.modules["transformer"].scale.grad is not None
