"""The validator that core ships: prompts -> latents -> videos, for any adapter that decodes."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fvd.adapters import Adapter, Conditioning
from fvd.data.video import write_video
from fvd.samplers.guidance import GuidedModel
from fvd.samplers.sampling import Sampler, sample_latents
from fvd.validation.prompts import Prompt
from fvd.validation.request import ValidationRequest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """One video that validation wrote. ``name``: what trackers show it under, the same at every step."""

    name: str
    path: Path
    caption: str


class VideoValidator:
    """Samples every prompt with the role, sampler and steps that the method asks for.

    Randomness is the prompts' own seeds: validation draws nothing from, and changes nothing of, training.
    """

    def __init__(
        self,
        *,
        adapter: Adapter,
        load_sampler: Callable[[str], Sampler],
        prompts: list[Prompt],
        latent_shape: tuple[int, int, int, int],
        output_dir: Path,
        fps: float,
    ) -> None:
        self.adapter = adapter
        self.load_sampler = load_sampler
        self.prompts = prompts
        self.latent_shape = latent_shape
        self.output_dir = output_dir
        self.fps = fps
        self._conditioning: list[Conditioning] = []

    def on_train_start(self, request: ValidationRequest) -> None:
        """Encode the prompts once, while the text encoder is in memory anyway."""
        self._conditioning = [self.adapter.encode_prompts([prompt.text]) for prompt in self.prompts]
        if request.guidance_scale != 1.0:
            self.adapter.ensure_negative_conditioning()
        if request.sampler_kind == "sde" and request.sampling_timesteps is None:
            logger.warning(
                "the sampler sde is meant for few-step students; on this role it shrinks the variance of the videos "
                "(pipeline_config.sampler_kind: ode does not)"
            )

    def done(self, step: int) -> bool:
        return self.step_dir(step).exists()

    def step_dir(self, step: int) -> Path:
        return self.output_dir / f"step-{step:08d}"

    def log_validation(self, step: int, request: ValidationRequest) -> list[Artifact]:
        """Sample, decode and write ``step-…/*.mp4`` and ``prompts.jsonl``; the folder gets its name when it is whole."""
        output_dir = request.output_dir or self.output_dir
        target = output_dir / f"step-{step:08d}"
        aside = output_dir / f".{target.name}.writing"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        rows = [
            self._sample(request, steps, index, aside) for steps in request.sampling_steps for index in range(len(self.prompts))
        ]
        (aside / "prompts.jsonl").write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
        self.adapter.release()
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
        return [Artifact(f"validation/{row['name']}", target / row["file"], row["prompt"]) for row in rows]

    def _sample(self, request: ValidationRequest, steps: int, index: int, folder: Path) -> dict[str, str]:
        prompt = self.prompts[index]
        model = GuidedModel(
            self.adapter,
            request.sample_handle,
            self._conditioning[index],
            None if request.guidance_scale == 1.0 else self.adapter.negative_conditioning(1),
            request.guidance_scale,
        )
        latents = sample_latents(
            model,
            sampler=self.load_sampler(request.sampler_kind),
            sampler_kind=request.sampler_kind,
            shape=self.latent_shape,
            steps=steps,
            timesteps=request.sampling_timesteps,
            seeds=[prompt.seed],
        )
        name = f"{index:03d}_{request.sampler_kind}_{steps}_steps"
        write_video(folder / f"{name}.mp4", self.adapter.decode(latents)[0], self.fps)
        return {"name": name, "file": f"{name}.mp4", "prompt": prompt.text, "seed": str(prompt.seed)}
