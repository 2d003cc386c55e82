"""The validator that core ships: prompts -> latents -> videos, for any adapter that decodes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from fvd.adapters import Conditioning
from fvd.console import progress
from fvd.data.video import write_video
from fvd.files import folder_written_aside
from fvd.samplers.guidance import GuidedModel
from fvd.samplers.sampling import sample_latents
from fvd.validation.base import Artifact, Validator, ValidatorContext
from fvd.validation.request import ValidationRequest

logger = logging.getLogger(__name__)


class VideoValidator(Validator):
    """Samples every prompt with the role, sampler and steps that the method asks for.

    Randomness is the prompts' own seeds: validation draws nothing from, and changes nothing of, training.
    """

    def __init__(self, context: ValidatorContext) -> None:
        super().__init__(context)
        self._conditioning: list[Conditioning] = []

    def on_train_start(self, request: ValidationRequest) -> None:
        adapter = self.context.adapter
        self._conditioning = [adapter.encode_prompts([prompt.text]) for prompt in self.context.prompts]
        if request.guidance_scale != 1.0:
            adapter.ensure_negative_conditioning()
        if self.context.load_sampler(request.sampler_kind).spec.few_step and request.sampling_timesteps is None:
            logger.warning(
                "the sampler %s is meant for few-step students; on this role it shrinks the variance of the videos "
                "(pipeline_config.sampler_kind: ode does not)",
                request.sampler_kind,
            )

    def log_validation(self, step: int, request: ValidationRequest) -> list[Artifact]:
        """Write ``NNN_sampler_S_steps.mp4`` for every prompt and number of steps, and ``prompts.jsonl``."""
        count = len(self.context.prompts)
        with folder_written_aside(self.step_dir(step)) as folder:
            rows = []
            with progress("validation", count * len(request.sampling_steps)) as bar:
                for steps in request.sampling_steps:
                    for index in range(count):
                        rows.append(self._sample(request, steps, index, folder))
                        bar.advance()
            listing = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / "prompts.jsonl").write_text(listing, encoding="utf-8")
        return [Artifact(f"validation/{row['name']}", self.step_dir(step) / row["file"], row["prompt"]) for row in rows]

    def _sample(self, request: ValidationRequest, steps: int, index: int, folder: Path) -> dict[str, str]:
        adapter, prompt = self.context.adapter, self.context.prompts[index]
        uncond = None if request.guidance_scale == 1.0 else adapter.negative_conditioning(1)
        latents = sample_latents(
            GuidedModel(adapter, request.sample_handle, self._conditioning[index], uncond, request.guidance_scale),
            sampler=self.context.load_sampler(request.sampler_kind),
            shape=self.context.latent_shape,
            steps=steps,
            timesteps=request.sampling_timesteps,
            seeds=[prompt.seed],
        )
        name = f"{index:03d}_{request.sampler_kind}_{steps}_steps"
        write_video(folder / f"{name}.mp4", adapter.decode(latents)[0], self.context.fps)
        return {"name": name, "file": f"{name}.mp4", "prompt": prompt.text, "seed": str(prompt.seed)}
