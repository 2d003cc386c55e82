"""The same weights, prompt, seed, steps and guidance: the same latents as diffusers' own pipeline."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from fvd.plugins import load_plugins
from fvd.samplers.guidance import GuidedModel
from fvd.samplers.sampling import load_sampler, sample_latents

PROMPT, NEGATIVE = "a red ball  rolling left &amp; 一个红色的球", "static, worst quality"
STEPS, SEED, SHAPE = 6, 42, (16, 3, 8, 8)


def sample_with_diffusers(pipeline, scheduler, guidance_scale):
    pipeline.scheduler = scheduler
    return pipeline(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
    ).frames


def sample_with_fvd(built, guidance_scale):
    adapter = built.adapter
    model = GuidedModel(
        adapter, built.handle, adapter.encode_prompts([PROMPT]), adapter.encode_prompts([NEGATIVE]), guidance_scale
    )
    ode = load_sampler(load_plugins(only=()), "ode")
    return sample_latents(model, sampler=ode, shape=SHAPE, steps=STEPS, timesteps=None, seeds=[SEED])


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("flow_shift", [3.0, 8.0])
@pytest.mark.parametrize("solver", ["unipc", "euler"])
def test_ode_sampler_equals_diffusers(build, pipeline, solver, flow_shift, guidance_scale):
    built = build(config={"ode_solver": solver, "flow_shift": flow_shift})
    scheduler = {
        "unipc": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift),
        "euler": FlowMatchEulerDiscreteScheduler(shift=flow_shift),
    }[solver]

    expected = sample_with_diffusers(pipeline, scheduler, guidance_scale)
    actual = sample_with_fvd(built, guidance_scale)

    assert actual.shape == expected.shape == (1, *SHAPE)
    assert expected.std() > 0.3  # a comparison of something
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def test_guidance_and_prompt_matter_in_that_comparison(build):
    built = build()
    assert (sample_with_fvd(built, 1.0) - sample_with_fvd(built, 5.0)).abs().max() > 1e-2


def test_equal_timesteps_are_taken_one_after_another(build, monkeypatch):
    """At flow shift 17 UniPC rounds the first timesteps to one number. A solver that looks up its place by value starts
    one step late and never comes back. A network that knows x0 must be led to x0, whatever the solver."""
    built = build(config={"flow_shift": 17.0})
    target = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1))
    steps, schedulers, called = 100, [], []

    def exact_velocity(self, handle, x_t, t, cond, *, attn_kind="dense"):
        # σ as the solver has it: rounded timesteps do not tell
        sigma = schedulers[0].sigmas[len(called)]
        called.append(float(t))
        return (x_t - target) / sigma

    make_scheduler = type(built.adapter).scheduler
    monkeypatch.setattr(type(built.adapter), "predict", exact_velocity)
    monkeypatch.setattr(
        type(built.adapter), "scheduler", lambda self, kind: schedulers.append(make_scheduler(self, kind)) or schedulers[0]
    )
    model = GuidedModel(built.adapter, built.handle, None, None)
    ode = load_sampler(load_plugins(only=()), "ode")
    latents = sample_latents(model, sampler=ode, shape=SHAPE, steps=steps, timesteps=None, seeds=[SEED])
    assert len(called) == steps
    assert len(set(called)) < steps  # the case is what it says
    assert called[0] == called[1]
    torch.testing.assert_close(latents, target, atol=1e-4, rtol=0)


def test_decoded_video_equals_diffusers(pipeline, adapter):
    latents = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    pipeline.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    mean = torch.tensor(pipeline.vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(pipeline.vae.config.latents_std).view(1, -1, 1, 1, 1)
    with torch.no_grad():
        pixels = pipeline.vae.decode(latents * std + mean).sample
    expected = pipeline.video_processor.postprocess_video(pixels, output_type="pt").permute(0, 2, 1, 3, 4)

    video = adapter.decode(latents)

    assert video.shape == (2, 3, 9, 64, 64)
    assert video.dtype == torch.float32
    assert video.min() >= 0
    assert video.max() <= 1
    assert video.std() > 0.05
    torch.testing.assert_close(video, expected, atol=1e-5, rtol=0)


def test_prompt_embeddings_equal_diffusers(pipeline, adapter):
    prompts = [PROMPT, "", "a very long text " * 200, "naÃ¯ve &lt;b&gt;\n tabs\tand   spaces "]
    expected, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=512)

    actual = adapter.encode_prompts(prompts).embeddings

    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert torch.equal(actual[1, 1:], torch.zeros(511, 32))  # "" is one token, </s>; the rest is padding
    assert actual[2].abs().sum(-1).min() > 0  # the long one fills all 512
