"""The validator that core ships: prompts -> latents -> videos, for any adapter that decodes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from torch import Tensor

from fvd.adapters import Conditioning
from fvd.console import progress
from fvd.data.video import write_video
from fvd.files import folder_written_aside
from fvd.rng import randn_per_sample, seeded_generator
from fvd.samplers.guidance import GuidedModel
from fvd.samplers.sampling import sample_latents
from fvd.validation.base import Artifact, Validator, ValidatorContext
from fvd.validation.panel import tile
from fvd.validation.request import GuidedColumn, PanelRequest, SamplingPlan, ValidationRequest
from fvd.validation.weights import Weights, in_use, weights_to_show

logger = logging.getLogger(__name__)

Row = dict[str, str]
"""A line of ``prompts.jsonl``."""


class VideoValidator(Validator):
    """Samples every prompt with the role, sampler and steps that the method asks for.

    Randomness is the prompts' own seeds: validation draws nothing from, and changes nothing of, training.
    """

    def __init__(self, context: ValidatorContext) -> None:
        super().__init__(context)
        self._conditioning: list[Conditioning] = []

    def on_train_start(self, request: ValidationRequest) -> None:
        adapter, plan = self.context.adapter, request.plan
        self._conditioning = [adapter.encode_prompts([prompt.text]) for prompt in self.context.prompts]
        columns = request.panel.columns.values() if request.panel else ()
        if plan.guidance_scale != 1.0 or any(_asks_for_negative_prompt(column) for column in columns):
            adapter.ensure_negative_conditioning()
        if self.context.load_sampler(plan.sampler_kind).spec.few_step and plan.sampling_timesteps is None:
            logger.warning(
                "the sampler %s is meant for few-step students; on this role it shrinks the variance of the videos "
                "(pipeline_config.sampler_kind: ode does not)",
                plan.sampler_kind,
            )

    def log_validation(self, step: int, request: ValidationRequest) -> list[Artifact]:
        """Write ``NNN_sampler_S_steps.mp4`` for every prompt and number of steps, with ``_ema`` where they are made with
        averaged weights; ``NNN_panel.mp4`` for every prompt where the method asks for panels; and ``prompts.jsonl``."""
        handle, plan = request.sample_handle, request.plan
        shown, count = weights_to_show(handle, request.weights), len(self.context.prompts)
        rows: list[Row] = []
        to_noise: list[Tensor] = []
        videos = count * (len(shown) * len(plan.sampling_steps) + (request.panel is not None))
        with folder_written_aside(self.step_dir(step)) as folder, progress("validation", videos) as bar:
            for weights in shown:
                with in_use(handle, weights):
                    for steps in plan.sampling_steps:
                        for index in range(count):
                            self.leave_if_stopped()
                            latents = self._sample(request, steps, index)
                            name = f"{index:03d}_{plan.sampler_kind}_{steps}_steps{'_ema' if weights == 'ema' else ''}"
                            rows.append(self._write(folder, name, index, self._decoded(latents)))
                            if request.panel is not None and len(to_noise) < count:
                                to_noise.append(latents)
                            bar.advance()
            if request.panel is not None:
                for index, sample in enumerate(to_noise):
                    self.leave_if_stopped()
                    panel = self._panel(request.panel, plan, sample, index, shown[0])
                    rows.append(self._write(folder, f"{index:03d}_panel", index, panel))
                    bar.advance()
            listing = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / "prompts.jsonl").write_text(listing, encoding="utf-8")
        return [Artifact(f"validation/{row['name']}", self.step_dir(step) / row["file"], row["prompt"]) for row in rows]

    def _sample(self, request: ValidationRequest, steps: int, index: int) -> Tensor:
        adapter, plan = self.context.adapter, request.plan
        uncond = None if plan.guidance_scale == 1.0 else adapter.negative_conditioning(1)
        return sample_latents(
            GuidedModel(adapter, request.sample_handle, self._conditioning[index], uncond, plan.guidance_scale),
            sampler=self.context.load_sampler(plan.sampler_kind),
            shape=self.context.latent_shape,
            steps=steps,
            timesteps=plan.sampling_timesteps,
            seeds=[self.context.prompts[index].seed],
            shift_timesteps=plan.shift_timesteps,
        )

    @torch.no_grad()
    def _panel(self, panel: PanelRequest, plan: SamplingPlan, sample: Tensor, index: int, weights: Weights) -> Tensor:
        """The sample, and what each column makes of it when it is noised: a row a timestep, with one noise for all."""
        adapter = self.context.adapter
        generator = seeded_generator("validation panel", self.context.prompts[index].seed)
        noise = randn_per_sample(sample.shape[1:], [generator], device=sample.device)
        sampled = (f"{plan.role}{' ema' if weights == 'ema' else ''}", self._decoded(sample))
        rows = []
        for timestep in panel.timesteps:
            t = torch.tensor([timestep], dtype=torch.float32, device=sample.device)
            x_t = adapter.add_noise(sample, noise, t)
            predicted = {label: self._guided(column, index).predict_x0(x_t, t) for label, column in panel.columns.items()}
            cells = [(f"{label} x0, t={timestep:.0f}", self._decoded(x0)) for label, x0 in predicted.items()]
            rows.append([sampled, *cells])
        return tile(rows)

    def _guided(self, column: GuidedColumn, index: int) -> GuidedModel:
        adapter, cond = self.context.adapter, self._conditioning[index]
        if column.guidance_scale == 1.0:
            uncond = None
        else:
            uncond = adapter.zero_conditioning(cond) if column.uncond == "zero" else adapter.negative_conditioning(1)
        return GuidedModel(adapter, column.handle, cond, uncond, column.guidance_scale)

    def _decoded(self, latents: Tensor) -> Tensor:
        """[1, C, T', H', W'] -> [3, T, H, W] on the CPU."""
        return self.context.adapter.decode(latents)[0]

    def _write(self, folder: Path, name: str, index: int, video: Tensor) -> Row:
        prompt = self.context.prompts[index]
        write_video(folder / f"{name}.mp4", video, self.context.fps)
        return {"name": name, "file": f"{name}.mp4", "prompt": prompt.text, "seed": str(prompt.seed)}


def _asks_for_negative_prompt(column: GuidedColumn) -> bool:
    return column.guidance_scale != 1.0 and column.uncond == "negative_prompt"
