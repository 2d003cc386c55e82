"""The methods on both toy families: they learn the mixture, whatever the network predicts, and run from generated files."""

from __future__ import annotations

import pytest
import torch

import fvd
from fvd.cli.main import main
from fvd.config.example import example_run_file
from fvd.plugins import load_plugins
from fvd.samplers.guidance import GuidedModel
from fvd.samplers.sde import sample_sde
from fvd.testing.steps import train_step
from fvd.testing.toy.config import ToyConfig
from fvd.testing.toy.family import MixtureFamily
from fvd.testing.toy.mixture import energy_distance
from fvd.testing.toy.workbench import toy_batch, toy_family, toy_method, toy_samples
from fvd_dmd2.config import DMD2Config
from fvd_dmd2.method import DMD2Method
from fvd_finetune.config import FinetuneConfig
from fvd_finetune.method import FinetuneMethod

BOTH = pytest.mark.parametrize("predicts", ["velocity", "noise"])
DISTILLED = {"student": True, "teacher": False, "critic": True}


def truth(family: MixtureFamily) -> torch.Tensor:
    return family.mixture.sample(1500, torch.Generator().manual_seed(99))


def finetuned(family: MixtureFamily, steps: int) -> FinetuneMethod:
    training = {"learning_rate": 5e-3, "lr_scheduler": "cosine", "max_train_steps": steps}
    method = toy_method(FinetuneMethod, FinetuneConfig(), {"student": True}, family=family, training=training)
    for iteration in range(1, steps + 1):
        train_step(method, toy_batch(family, 128, first=128 * iteration), iteration)
    return method


def few_step_samples(method: DMD2Method, count: int = 1500) -> torch.Tensor:
    """What the student makes on its ladder, as `fvd sample` does."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    noise = torch.stack([torch.randn(2, 1, 1, 1, generator=generator) for generator in generators])
    model = GuidedModel(method.adapter, method.roles["student"], method.adapter.encode_prompts([""] * count), None)
    return sample_sde(model, noise, scheduler=None, timesteps=method.ladder, generators=generators).flatten(1)


@pytest.mark.parametrize(("predicts", "gain"), [("velocity", 3), ("noise", 1.5)])
def test_finetune_then_distil(predicts, gain):
    """Finetuning from random weights brings 50-step samples to the mixture; dmd2 then brings the student's 4-step samples
    nearer than the finetuned network's own, with the exact denoiser as its teacher.

    Over a few initial weights the energy distance fell 8 to 18 times, and then 6 to 8 times (velocity) or 2 to 6 times
    (noise, of which little of x0 can be told at the first step of the ladder).
    """
    family = toy_family(predicts)
    untrained = energy_distance(toy_samples(*random_student(family), 1500), truth(family))
    method = finetuned(family, 300)
    assert energy_distance(toy_samples(method.adapter, method.roles["student"], 1500), truth(family)) < untrained / 3

    config = DMD2Config(dmd_denoising_steps=(1000, 750, 500, 250), real_score_guidance_scale=0.0, generator_update_interval=2)
    training = {"learning_rate": 1e-3, "lr_scheduler": "cosine", "max_train_steps": 300}
    distilled = toy_method(DMD2Method, config, DISTILLED, family=family, training=training)
    for name in ("student", "critic"):
        start = method.roles["student"].modules["transformer"].state_dict()
        distilled.roles[name].modules["transformer"].load_state_dict(start)
    before = energy_distance(few_step_samples(distilled), truth(family))
    for iteration in range(1, 301):
        train_step(distilled, toy_batch(family, 128, first=128 * iteration), iteration)
    assert energy_distance(few_step_samples(distilled), truth(family)) < before / gain


def random_student(family: MixtureFamily) -> tuple[fvd.Adapter, fvd.RoleHandle]:
    student = family.load_role("student", fvd.RoleConfig(path="random", trainable=False))
    return family.build_adapter(fvd.RoleManager([student])), student


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
@BOTH
def test_the_ladder_is_warped_as_the_adapter_shifts(predicts, shift):
    family = toy_family(predicts, config=ToyConfig(flow_shift=shift))
    config = DMD2Config(dmd_denoising_steps=(1000, 750, 500, 250), warp_denoising_step=True)
    method = toy_method(DMD2Method, config, DISTILLED, family=family)
    shifted = method.adapter.shift_and_clamp_timestep(torch.tensor(config.trained_steps))
    torch.testing.assert_close(method.ladder, shifted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("family", ["toy", "toy_noise"])
@pytest.mark.parametrize("method", ["finetune", "dmd2"])
def test_generated_run_files_run(family, method, tmp_path, monkeypatch):
    """What `fvd plugins example` writes for the pair, two steps of it."""
    monkeypatch.chdir(tmp_path)
    text = example_run_file(load_plugins(request=(family,)), family, method)
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    short = ["--set", "training.max_train_steps=2", "--set", "training.output_dir=out"]
    assert main(["run", "run.yaml", *short]) == 0
    assert main(["sample", "out", "--prompt", "mode 3", "--steps", "2", "--out", "out.mp4"]) == 0
