"""B208, B209: a method in real runs, and what they are sampled with."""

from __future__ import annotations

from torch import Tensor

from fvd.data.spec import VideoGeometry
from fvd.samplers.guidance import GuidedModel
from fvd.samplers.sampling import check_plan, load_sampler, sample_latents
from fvd.testing.conformance.asserts import listed, require, require_tensor
from fvd.testing.conformance.method_build import BuiltMethod, MethodBench, on_every_toy, steps_until_all_moved
from fvd.testing.conformance.runs import require_resumable
from fvd.validation.request import SamplingPlan


@on_every_toy
def resume(bench: MethodBench) -> None:
    """B208: through `fvd run`, the method's own buffers included."""
    steps = steps_until_all_moved(bench.build())
    require_resumable(bench.trial, bench.subject.make_folder("runs"), steps)


@on_every_toy
def sampling_plan(bench: MethodBench) -> None:
    """B209: the plan follows from the run file alone, fits the family, and samples."""
    method_class = bench.subject.plugins.load("method", bench.subject.name)
    plan = method_class.sampling_plan(bench.run_config)
    require(isinstance(plan, SamplingPlan), f"sampling_plan must return a fvd.SamplingPlan, got a {type(plan).__name__}")
    require(
        plan.role in bench.spec.roles,
        f"sampling_plan names the role {plan.role!r}; the method's are {listed(bench.spec.roles)}",
    )
    check_plan(plan, bench.subject.plugins, bench.family_spec)
    if plan.sampling_timesteps is not None:
        ladder = list(plan.sampling_timesteps)
        require(ladder == sorted(ladder, reverse=True), f"sampling_timesteps must fall, they are {ladder}")
    declared = bench.run_config.method_config.sampling_ladder()
    if declared is not None:
        same = (declared.sampler_kind, declared.timesteps) == (plan.sampler_kind, plan.sampling_timesteps)
        require(same, "sampling_plan must be on the ladder that sampling_ladder() of its config names, by which run files go")
    built = bench.build()
    request = built.method.validation_request(0)
    if request is not None:
        require(request.sample_handle in list(built.roles), "validation_request must sample a role of the run")
        require(request.plan == plan, "validation_request must sample as sampling_plan says, which `fvd sample` goes by")
    latents = sample_as_planned(bench, built, plan, "a", 2)
    require_tensor(latents, (2, *_shape(built)), "what its sampling plan makes")


def sample_as_planned(bench: MethodBench, built: BuiltMethod, plan: SamplingPlan, prompt: str, count: int) -> Tensor:
    """``count`` latents of one prompt, from the seeds 0, 1, …."""
    built.adapter.ensure_negative_conditioning()
    model = GuidedModel(
        built.adapter,
        built.roles[plan.role],
        built.adapter.encode_prompts([prompt] * count),
        built.adapter.negative_conditioning(count),
        plan.guidance_scale,
    )
    return sample_latents(
        model,
        sampler=load_sampler(bench.subject.plugins, plan.sampler_kind),
        shape=_shape(built),
        steps=min(plan.sampling_steps),
        timesteps=plan.sampling_timesteps,
        shift_timesteps=plan.shift_timesteps,
        seeds=range(count),
    )


def _shape(built: BuiltMethod) -> tuple[int, int, int, int]:
    return built.adapter.latent_shape(VideoGeometry(num_frames=1, height=32, width=32))
