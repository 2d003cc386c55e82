"""What the conventions of published systems amount to: timesteps, ladders, guidance, optimizers. Shares, atoms and numbers come
from formulas, and from `reference_systems`."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from reference_systems import STEPS, SYSTEMS, FlowMatching, Replay, Setting, Text, shifted
from small_video import LATENT_SHAPE, NEGATIVE_PROMPT, SmallVideoAdapter, small_raw_batch, small_roles, small_run
from torch import Tensor

from fvd import RunConfig
from fvd.testing.steps import step_random
from fvd_dmd2.config import DMD2Config
from fvd_dmd2.method import DMD2Method

FLOW_SHIFT = 3.0
DRAWS = 10_000


def run_of(**settings: object) -> RunConfig:
    roles = small_roles({"student": True, "teacher": False, "critic": True})
    return small_run(roles, DMD2Config.model_validate(settings), method="dmd2", flow_shift=FLOW_SHIFT)


def build(flow_shift: float = FLOW_SHIFT, **settings: object) -> DMD2Method:
    roles = small_roles({"student": True, "teacher": False, "critic": True})
    run = small_run(roles, DMD2Config.model_validate(settings), method="dmd2", flow_shift=flow_shift)
    return DMD2Method.build(run=run, roles=roles, adapter=SmallVideoAdapter(flow_shift=flow_shift))


def four_sigma(share: float) -> float:
    """Of a share of ``DRAWS``."""
    return 4.0 * (share * (1 - share) / DRAWS) ** 0.5


def many_timesteps(flow_shift: float = FLOW_SHIFT, **settings: object) -> Tensor:
    return build(flow_shift, **settings).score_timesteps.sample(step_random(1, DRAWS))


# --- timesteps ---
@pytest.mark.parametrize("of_critic", [False, True], ids=["score", "critic"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_timesteps_of_a_preset_are_its_systems(name, of_critic):
    """Thousands of draws, so that the rare ends of the range are among them."""
    system, method = SYSTEMS[name], build(preset=name)
    found, wanted = (
        (method.critic_timesteps, system.critic_timestep) if of_critic else (method.score_timesteps, system.score_timestep)
    )
    setting = Setting({}, torch.empty(0), *_texts(1), FlowMatching(), FLOW_SHIFT)
    one_for_all = name == "fastvideo"
    differing = 0
    for seed in range(1500 if one_for_all else 1):
        batch_size = 2 if one_for_all else DRAWS
        theirs = wanted(setting, Replay(step_random(1, batch_size, seed=seed), LATENT_SHAPE))
        ours = found.sample(step_random(1, batch_size, seed=seed))
        differing += int((~torch.isclose(ours.double(), theirs, rtol=1e-6, atol=0)).sum())
    assert differing <= 2  # where 1000 u is a whole number up to rounding, it may be rounded either way


@pytest.mark.parametrize(("shift", "share"), [(5.0, 0.0926), (8.0, 0.1404)])
def test_clamping_after_the_shift_makes_an_atom_at_the_end(shift, share):
    """P(shift(u) >= 0.98) = 1 - 0.98 / (s - (s - 1) 0.98)."""
    assert 1 - 0.98 / (shift - (shift - 1) * 0.98) == pytest.approx(share, abs=1e-4)
    clamped = many_timesteps(score_timestep_range="clamp", score_timestep_shift=shift)
    assert float((clamped == 980).float().mean()) == pytest.approx(share, abs=four_sigma(share))
    whole = many_timesteps(score_timestep_range="clamp", score_timestep_shift=shift, score_timestep_draw="integer")
    assert float((whole == 980).float().mean()) == pytest.approx(share, abs=four_sigma(share))


@pytest.mark.parametrize("shift", [1.0, 5.0, 8.0])
def test_inside_has_no_atom_and_keeps_the_law_of_what_lies_within(shift):
    inside = many_timesteps(score_timestep_range="inside", score_timestep_shift=shift)
    assert Counter(inside.tolist()).most_common(1)[0][1] < 20  # in float32 some coincide
    assert 20 <= float(inside.min()) < 30
    assert 970 < float(inside.max()) <= 980
    clamped = many_timesteps(score_timestep_range="clamp", score_timestep_shift=shift)
    within = clamped[(clamped > 20) & (clamped < 980)]
    levels = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(inside.quantile(levels), within.quantile(levels), rtol=0.02, atol=0)


def test_a_range_before_the_shift_is_wider_after_it_and_clamped():
    """Drawn from [.001, .999], shifted by 5: 0.40 % lie at 999, none at 1."""
    t = many_timesteps(
        score_timestep_range="before_shift", score_timestep_shift=5.0, min_timestep_ratio=0.001, max_timestep_ratio=0.999
    )
    share = (0.999 - 0.999 / (5 - 4 * 0.999)) / 0.998
    assert share == pytest.approx(0.0040, abs=1e-4)
    assert float((t == 999).float().mean()) == pytest.approx(share, abs=four_sigma(share))
    assert float(t.min()) >= float(shifted(torch.tensor(1.0), 5.0)) > 4.9


# --- guidance ---
@pytest.mark.parametrize(
    "unit", [{"guidance_convention": "standard", "real_score_guidance_scale": 1.0}, {"real_score_guidance_scale": 0.0}]
)
@pytest.mark.parametrize("skip_unused_uncond", [True, False])
def test_unit_guidance_is_the_conditional_prediction(unit, skip_unused_uncond):
    method = build(skip_unused_uncond=skip_unused_uncond, **unit)
    method.on_train_start()
    batch = method.adapter.prepare_batch(small_raw_batch(3), latents_source="data")
    t = torch.tensor([20.0, 500.0, 980.0])
    conditional = method.adapter.bind(method.roles["teacher"]).predict_x0(batch.latents, t, batch.cond)
    found = method.teacher.predict_x0(batch.latents, t, batch).x0
    if skip_unused_uncond:
        assert torch.equal(found, conditional)
    torch.testing.assert_close(found, conditional, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("offset", "standard"), [(3.5, 4.5), (0.0, 1.0)])
def test_an_offset_is_one_less_than_a_standard_scale(offset, standard):
    assert DMD2Config(real_score_guidance_scale=offset).standard_guidance_scale == standard
    by_scale = DMD2Config(real_score_guidance_scale=standard, guidance_convention="standard")
    assert by_scale.standard_guidance_scale == standard


@pytest.mark.parametrize(
    ("name", "scale"), [("dmd2", 8), ("causvid", 4.5), ("self_forcing", 4), ("fastgen", 5), ("fastvideo", 4.5)]
)
def test_guidance_of_a_preset_in_the_standard_convention(name, scale):
    assert DMD2Config.model_validate({"preset": name}).standard_guidance_scale == scale


# --- how the student is sampled ---
@pytest.mark.parametrize("name", SYSTEMS)
def test_validation_samples_as_the_system_does(name):
    plan = DMD2Method.sampling_plan(run_of(preset=name))
    ladders = {"dmd2": (999, 749, 499, 249), "causvid": (1000, 757, 522), "fastgen": (999, 937, 833, 624)}
    assert plan.sampling_timesteps == ladders.get(name, STEPS)
    assert plan.shift_timesteps == (name == "self_forcing")
    assert plan.sampler_kind == ("ddim" if name == "fastgen" else "sde")
    assert plan.guidance_scale == 1.0


@pytest.mark.parametrize(("shift", "warped"), [(5.0, (1000, 937.5, 833.333, 625)), (8.0, (1000, 960, 888.889, 727.273))])
def test_a_warped_ladder(shift, warped):
    ladder = build(shift, dmd_denoising_steps=(*STEPS, 0), warp_denoising_step=True).ladder
    torch.testing.assert_close(ladder, torch.tensor(warped), rtol=1e-6, atol=0)


# --- optimizers ---
PUBLISHED = {
    # learning rate of student and critic, betas, clip of student and critic
    "dmd2": (5e-7, 5e-7, (0.9, 0.999), 10.0, 10.0),
    "causvid": (2e-6, 2e-6, (0.9, 0.999), 10.0, 10.0),
    "self_forcing": (2e-6, 4e-7, (0.0, 0.999), 10.0, 10.0),
    "fastgen": (1e-5, 1e-5, (0.9, 0.999), 10.0, 0.0),
    "fastvideo": (2e-6, 8e-6, (0.0, 0.999), 1.0, 1.0),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_optimizers_of_a_preset_are_its_systems(name):
    student_rate, critic_rate, betas, student_clip, critic_clip = PUBLISHED[name]
    run = run_of(preset=name)
    student, critic = run.optimizer_of("student"), run.optimizer_of("critic")
    assert (student.learning_rate, critic.learning_rate) == (student_rate, critic_rate)
    assert (student.max_grad_norm, critic.max_grad_norm) == (student_clip, critic_clip)
    for optimizer in (student, critic):
        assert (optimizer.name, optimizer.betas, optimizer.weight_decay) == ("AdamW", betas, 0.01)


def test_an_average_that_ticks_at_every_step_is_one_on_the_students_clock():
    """FastVideo averages at every step, decay 0.98, of which the student moves at one in five: just before the student moves
    again, both averages agree."""
    ema = run_of(preset="fastvideo").ema_of("student")
    assert ema is not None
    every_step = own_clock = 0.0
    for weight in (1.0, -2.0, 0.5, 3.0):
        for _ in range(5):
            every_step = 0.98 * every_step + 0.02 * weight
        own_clock = ema.decay * own_clock + (1 - ema.decay) * weight
        assert own_clock == pytest.approx(every_step, rel=1e-9)


@pytest.mark.parametrize(("name", "decay", "start"), [("dmd2", None, 0), ("causvid", None, 0), ("self_forcing", 0.99, 40)])
def test_average_of_a_preset(name, decay, start):
    """Self-Forcing begins at iteration 200, which is its student's 40th update."""
    ema = run_of(preset=name).ema_of("student")
    assert (None if ema is None else (ema.decay, ema.start_step)) == (None if decay is None else (decay, start))


def _texts(batch_size: int) -> tuple[Text, Text]:
    negative = SmallVideoAdapter().encode_prompts([NEGATIVE_PROMPT] * batch_size)
    text = Text(negative.embeddings, negative.mask)
    return text, text
