"""Core's validator on the toy: whose weights it samples with, and what its panels show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fvd
from fvd.config.optimization import EmaSettings
from fvd.ema import Ema
from fvd.errors import FvdError
from fvd.plugins import load_plugins
from fvd.rng import seeded_generator
from fvd.samplers.guidance import GuidedModel
from fvd.samplers.sampling import load_sampler, sample_latents
from fvd.testing.toy.workbench import toy_family
from fvd.validation.base import ValidatorContext
from fvd.validation.panel import EDGE, GREY, LABEL_HEIGHT, NARROWEST, WIDEST, labelled, tile
from fvd.validation.prompts import Prompt
from fvd.validation.video import VideoValidator

SHAPE = (2, 1, 1, 1)
PROMPTS = [Prompt("mode 1", seed=5), Prompt("mode 6", seed=6)]
PLAN = fvd.SamplingPlan(role="student", sampler_kind="sde", sampling_steps=(2,), sampling_timesteps=(1000.0, 600.0))


class Bench:
    """Roles, an adapter and a validator; ``written`` has the videos by name, before any compression."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        family = toy_family()
        paths = {"student": "random:1", "critic": "random:2", "teacher": "analytic"}
        loaded = [
            family.load_role(name, fvd.RoleConfig(path=path, trainable=path != "analytic")) for name, path in paths.items()
        ]
        self.roles = fvd.RoleManager(loaded)
        self.adapter = family.build_adapter(self.roles)
        self.student = self.roles["student"]
        self.plugins = load_plugins()
        self.written: dict[str, torch.Tensor] = {}
        monkeypatch.setattr("fvd.validation.video.write_video", self._write)
        context = ValidatorContext(
            adapter=self.adapter,
            load_sampler=lambda kind: load_sampler(self.plugins, kind),
            prompts=PROMPTS,
            latent_shape=SHAPE,
            output_dir=folder,
            fps=8.0,
        )
        self.validator = VideoValidator(context)

    def _write(self, path: Path, video: torch.Tensor, fps: float) -> None:
        assert fps == 8.0
        self.written[path.stem] = video
        path.write_bytes(b"mp4")

    def request(self, **changes: object) -> fvd.ValidationRequest:
        return fvd.ValidationRequest(**{"plan": PLAN, "sample_handle": self.student} | changes)

    def validate(self, **changes: object) -> list[fvd.Artifact]:
        request = self.request(**changes)
        self.validator.on_train_start(request)
        return self.validator.log_validation(0, request)

    def sampled(self, index: int, plan: fvd.SamplingPlan = PLAN) -> torch.Tensor:
        """What `sample_latents` makes of a prompt with the weights of now."""
        cond = self.adapter.encode_prompts([PROMPTS[index].text])
        return sample_latents(
            GuidedModel(self.adapter, self.student, cond, None),
            sampler=load_sampler(self.plugins, plan.sampler_kind),
            shape=SHAPE,
            steps=plan.sampling_steps[0],
            timesteps=plan.sampling_timesteps,
            seeds=[PROMPTS[index].seed],
        )

    def give_student_an_average(self) -> None:
        """Of which the weights have moved away since."""
        self.student.ema = Ema(self.student.modules, EmaSettings())
        with torch.no_grad():
            for parameter in self.student.trainable_parameters():
                parameter.mul_(1.5)


@pytest.fixture
def bench(tmp_path, monkeypatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


# --- raw and EMA -----------------------------------------------------------------------------------------------------
RAW, EMA = ["000_sde_2_steps", "001_sde_2_steps"], ["000_sde_2_steps_ema", "001_sde_2_steps_ema"]


@pytest.mark.parametrize(("weights", "names"), [("both", RAW + EMA), ("ema", EMA), ("raw", RAW)])
def test_weights_and_their_average_are_sampled_from_the_same_noise(bench, weights, names):
    of_average = bench.adapter.decode(bench.sampled(0))[0]
    bench.give_student_an_average()
    of_weights = bench.adapter.decode(bench.sampled(0))[0]
    kept = [parameter.detach().clone() for parameter in bench.student.trainable_parameters()]
    artifacts = bench.validate(weights=weights)
    assert [artifact.name for artifact in artifacts] == [f"validation/{name}" for name in names]
    assert not torch.equal(of_average, of_weights)
    for name, expected in ((RAW[0], of_weights), (EMA[0], of_average)):
        assert name not in bench.written or torch.equal(bench.written[name], expected)
    assert all(torch.equal(a, b) for a, b in zip(kept, bench.student.trainable_parameters(), strict=True))
    listed = [json.loads(line) for line in (bench.validator.step_dir(0) / "prompts.jsonl").read_text().splitlines()]
    assert [row["name"] for row in listed] == names


def test_a_role_without_an_average(bench):
    bench.validate(weights="both")
    assert list(bench.written) == RAW
    with pytest.raises(FvdError, match=r"the role student has no average\nGive it one, `roles\.student\.ema:"):
        bench.validate(weights="ema")


def test_a_ladder_before_the_shift_is_placed_by_the_adapter(bench):
    """σ' = s σ / (1 + (s − 1) σ) with s = 5: 600 becomes 882.35, and 1000 stays."""
    bench.adapter.flow_shift = 5.0
    before = fvd.SamplingPlan(**{**vars(PLAN), "shift_timesteps": True})
    after = fvd.SamplingPlan(**{**vars(PLAN), "sampling_timesteps": (1000.0, 5 * 600 / (1 + 4 * 0.6))})
    bench.validate(plan=before)
    placed = bench.written[RAW[0]]
    bench.validate(plan=after)
    torch.testing.assert_close(placed, bench.written[RAW[0]])
    bench.validate()
    assert (placed - bench.written[RAW[0]]).abs().max() > 0.01


# --- panels ----------------------------------------------------------------------------------------------------------
def panel_of(bench: Bench, **teacher: object) -> fvd.PanelRequest:
    columns = {
        "teacher": fvd.GuidedColumn(handle=bench.roles["teacher"], **teacher),
        "critic": fvd.GuidedColumn(handle=bench.roles["critic"]),
    }
    return fvd.PanelRequest(columns=columns, timesteps=(300.0, 700.0))


@pytest.mark.parametrize("guided", [{}, {"guidance_scale": 3.0}, {"guidance_scale": 3.0, "uncond": "zero"}], ids=str)
def test_a_panel_shows_what_each_column_makes_of_the_noised_sample(bench, guided):
    artifacts = bench.validate(panel=panel_of(bench, **guided))
    assert [artifact.name for artifact in artifacts][2:] == ["validation/000_panel", "validation/001_panel"]
    adapter, decode = bench.adapter, lambda latents: bench.adapter.decode(latents)[0]
    for index, prompt in enumerate(PROMPTS):
        sample, cond = bench.sampled(index), adapter.encode_prompts([prompt.text])
        noise = torch.randn(SHAPE, generator=seeded_generator("validation panel", prompt.seed))[None]
        rows = []
        for timestep in (300.0, 700.0):
            t, sigma = torch.tensor([timestep]), timestep / 1000
            x_t = (1 - sigma) * sample + sigma * noise
            real = adapter.predict_x0(bench.roles["teacher"], x_t, t, cond)
            if guided:  # the toy's empty negative prompt and an embedding of zeros both mean all modes
                uncond = adapter.predict_x0(bench.roles["teacher"], x_t, t, adapter.encode_prompts([""]))
                real = uncond + 3.0 * (real - uncond)
            fake = adapter.predict_x0(bench.roles["critic"], x_t, t, cond)
            cells = [("student", sample), (f"teacher x0, t={timestep:.0f}", real), (f"critic x0, t={timestep:.0f}", fake)]
            rows.append([(label, decode(latents)) for label, latents in cells])
        torch.testing.assert_close(bench.written[f"{index:03d}_panel"], tile(rows), atol=1e-5, rtol=0)


def test_the_negative_prompt_is_encoded_only_for_those_who_ask(bench):
    bench.validate(panel=panel_of(bench, guidance_scale=3.0, uncond="zero"))
    with pytest.raises(FvdError, match="the negative prompt has not been encoded"):
        bench.adapter.negative_conditioning(1)
    bench.validate(panel=panel_of(bench, guidance_scale=3.0))
    bench.adapter.negative_conditioning(1)


def test_a_panel_of_averaged_weights_says_so(bench, monkeypatch):
    seen: list[str] = []
    monkeypatch.setattr("fvd.validation.video.tile", lambda rows: seen.extend(row[0][0] for row in rows) or rows[0][0][1])
    bench.give_student_an_average()
    bench.validate(panel=panel_of(bench), weights="ema")
    assert set(seen) == {"student ema"}


@pytest.mark.parametrize(
    ("size", "shown"),
    [((32, 32), (128, 128)), ((60, 100), (120, 200)), ((240, 400), (240, 400)), ((480, 832), (277, WIDEST))],
)
def test_pictures_get_a_size_to_look_at(size, shown):
    assert NARROWEST <= shown[1] <= WIDEST
    cell = labelled("x", torch.rand(3, 5, *size))
    assert cell.shape == (3, 5, shown[0] + LABEL_HEIGHT + EDGE, shown[1] + EDGE)


def test_cells_are_where_they_belong_and_labels_differ():
    pictures = {name: torch.full((3, 2, 128, 128), value) for name, value in (("a", 0.1), ("b", 0.4), ("c", 0.7), ("d", 1.0))}
    names = [["a", "b"], ["c", "d"]]
    tiled = tile([[(name, pictures[name]) for name in row] for row in names])
    height, width = 128 + LABEL_HEIGHT + EDGE, 128 + EDGE
    assert tiled.shape == (3, 2, 2 * height, 2 * width)
    strips = []
    for row in range(2):
        for column in range(2):
            cell = tiled[..., row * height : (row + 1) * height, column * width : (column + 1) * width]
            assert torch.equal(cell[..., LABEL_HEIGHT:-EDGE, :-EDGE], pictures[names[row][column]])
            strips.append(cell[:, 0, :LABEL_HEIGHT])
    assert all((strip - GREY).abs().max() > 0.3 for strip in strips)  # something is written
    assert not any(torch.equal(strips[0], other) for other in strips[1:])
