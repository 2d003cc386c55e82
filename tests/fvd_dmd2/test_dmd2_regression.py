"""The regression term of dmd2: its value, gradient and draws, what it learns alone, and a whole run on pairs of a tiny Wan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch import Tensor

import fvd
from fvd.cli.main import main
from fvd.data.parquet import TEXT_ONLY_SCHEMA
from fvd.data.parquet_schema import pack_tensor
from fvd.data.trajectories import LATENTS, TIMESTEPS, Trajectories
from fvd.errors import DataError
from fvd.samplers.guidance import GuidedModel
from fvd.samplers.ode import sample_ode
from fvd.testing.conformance.runs import read_metrics
from fvd.testing.steps import step_random
from fvd.testing.toy.config import ToyConfig
from fvd.testing.toy.workbench import toy_batch, toy_family, toy_method
from fvd_dmd2.config import DMD2Config, expected_passes
from fvd_dmd2.method import DMD2Method
from fvd_dmd2.regression import draw_pairs, regression_error, regression_term

ROLES = {"student": True, "teacher": False, "critic": True}
LADDER = [1000.0, 500.0]
B = 6


def make_method(*, shift: float = 1.0, **config: Any) -> DMD2Method:
    settings = {"dmd_denoising_steps": LADDER, "generator_update_interval": 1, **config}
    return toy_method(DMD2Method, DMD2Config(**settings), ROLES, family=toy_family(config=ToyConfig(flow_shift=shift)))


def with_pairs(method: DMD2Method, batch_size: int, *, first: int = 0, steps: int = 40) -> fvd.RawBatch:
    """A batch whose trajectories are the exact denoiser's, of the noise, the middle and the end."""
    raw = toy_batch(toy_family(), batch_size, first=first)
    adapter, teacher = method.adapter, method.roles["teacher"]
    scheduler = adapter.scheduler("ode")
    scheduler.set_timesteps(steps)
    noise = torch.randn(batch_size, 2, 1, 1, 1, generator=torch.Generator().manual_seed(first))
    points = [noise]
    model = GuidedModel(adapter, teacher, adapter.prepare_batch(raw, latents_source="zeros").cond, None)
    for timesteps in (scheduler.timesteps[: steps // 2], scheduler.timesteps[steps // 2 :]):
        points.append(sample_ode(model, points[-1], scheduler=scheduler, timesteps=timesteps, generators=[]))
    timesteps = torch.tensor([1000.0, 500.0, 0.0]).expand(batch_size, -1)
    assert float(scheduler.timesteps[steps // 2]) == 500
    raw.on_host.update({LATENTS: torch.stack(points, dim=1), TIMESTEPS: timesteps})
    return raw


def losses_of(method: DMD2Method, raw: fvd.RawBatch, iteration: int = 1) -> dict[str, fvd.Loss]:
    return {loss.name: loss for loss in method.single_train_step(raw, iteration, rng=step_random(iteration, len(raw.info)))}


# --- the term ---
def test_value_and_gradient_are_those_of_the_formula():
    method = make_method(regression_weight=0.25)
    raw = with_pairs(method, B)
    rng = step_random(1, B)
    rungs = [torch.randint(2, (), generator=generator).item() for generator in rng.per_sample]
    assert 0 < sum(rungs) < B  # both rungs
    loss = method.regression_loss(raw, method.adapter.prepare_batch(raw, latents_source="zeros"), step_random(1, B))

    points, cond = raw.on_host[LATENTS], method.adapter.prepare_batch(raw, latents_source="zeros").cond
    x_t = torch.stack([points[sample, rung] for sample, rung in enumerate(rungs)])
    t = torch.tensor([LADDER[rung] for rung in rungs])
    network = method.roles["student"].modules["transformer"]
    velocity = network(x_t, t / 1000, cond)
    expected = 0.25 * (x_t - (t / 1000)[:, None, None, None, None] * velocity - points[:, 2]).square().mean()
    torch.testing.assert_close(loss.value, expected)
    assert loss.role == "student"

    parameters = list(network.parameters())
    for found, wanted in zip(
        torch.autograd.grad(loss.value, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(found, wanted)
    assert not any(p.grad is not None for p in method.roles["critic"].trainable_parameters())


def test_weight_0_draws_nothing_and_asks_for_nothing():
    method = make_method()
    raw = toy_batch(toy_family(), B)
    assert set(losses_of(method, raw)) == {"student_loss", "critic_loss"}
    assert not DMD2Method.needs_trajectories(method.run)
    assert DMD2Method.needs_trajectories(make_method(regression_weight=1.0).run)


def test_the_draw_comes_after_all_others_of_the_students_loss():
    without, with_term = make_method(), make_method(regression_weight=1.0)
    raw = with_pairs(without, B)
    before, after = losses_of(without, raw), losses_of(with_term, raw)
    assert list(after) == ["student_loss", "regression_loss", "critic_loss"]
    assert torch.equal(before["student_loss"].value, after["student_loss"].value)


def test_only_where_the_student_is_due():
    method = make_method(regression_weight=1.0, generator_update_interval=2)
    raw = with_pairs(method, B)
    assert set(losses_of(method, raw, 1)) == {"critic_loss"}
    assert set(losses_of(method, raw, 2)) == {"student_loss", "regression_loss", "critic_loss"}


def test_each_rung_is_drawn_with_equal_chances_for_each_sample():
    method = make_method(regression_weight=1.0)
    raw = with_pairs(method, 2)
    like = torch.zeros(2, 2, 1, 1, 1)
    drawn = torch.stack([draw_pairs(Trajectories.of(raw), LADDER, step_random(step, 2), like).t for step in range(1, 601)])
    shares = (drawn == 1000).float().mean(dim=0)
    assert ((shares - 0.5).abs() < 4 * 0.5 / 600**0.5).all()
    together = ((drawn[:, 0] == 1000) & (drawn[:, 1] == 1000)).float().mean()
    assert abs(float(together) - 0.25) < 4 * (0.25 * 0.75 / 600) ** 0.5


def test_a_sample_without_its_text_adds_nothing_and_counts():
    errors = torch.tensor([1.0, 2.0, float("nan"), 5.0], requires_grad=True)
    value, metrics = regression_term(errors, torch.tensor([False, False, True, False]))
    assert value.item() == pytest.approx(8 / 4)
    (gradient,) = torch.autograd.grad(value, errors)
    assert gradient.tolist() == [0.25, 0.25, 0, 0.25]
    mean = metrics["dmd2/regression_error"]
    assert float(mean.total / mean.weight) == pytest.approx(8 / 3)


def test_the_ladder_after_the_flow_shift_is_what_is_looked_up():
    raw = with_pairs(make_method(), B)
    raw.on_host[TIMESTEPS] = torch.tensor([1000.0, 750.0, 0.0]).expand(B, -1)
    losses_of(make_method(shift=3.0, regression_weight=1.0, warp_denoising_step=True), raw)
    with pytest.raises(DataError, match="timestep 500; it has 1000, 750"):
        losses_of(make_method(shift=3.0, regression_weight=1.0), raw)


def test_pairs_of_another_size_are_refused():
    method = make_method(regression_weight=1.0)
    raw = with_pairs(method, B)
    raw.on_host[LATENTS] = raw.on_host[LATENTS].repeat(1, 1, 1, 2, 1, 1)
    with pytest.raises(DataError, match=r"latents \[2, 2, 1, 1\], and this run has \[2, 1, 1, 1\]"):
        losses_of(method, raw)


def test_the_toys_data_refuse_before_the_first_step(tmp_path, capsys):
    assert main(["run", write_run(tmp_path, "toy", roles=TOY_ROLES, method_config={"regression_weight": 1.0})]) == 1
    assert "no trajectories" in capsys.readouterr().err


# --- what it learns ---
def test_alone_it_leads_a_one_step_student_to_the_flow_map():
    """On noise that it has not seen the student finds the end of the teacher's own solution, not merely the distribution."""
    method = make_method(regression_weight=1.0, dmd_denoising_steps=[1000])
    student = method.roles["student"]
    optimizer = torch.optim.Adam(student.trainable_parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)
    raw = with_pairs(method, 1024)
    batch = method.adapter.prepare_batch(raw, latents_source="zeros")
    pairs = draw_pairs(Trajectories.of(raw), method.ladder_on_host, step_random(1, 1024), batch.latents)
    assert torch.equal(pairs.x_t, raw.on_host[LATENTS][:, 0])  # there is but one rung

    def error(raw: fvd.RawBatch) -> Tensor:
        points = raw.on_host[LATENTS]
        cond = method.adapter.prepare_batch(raw, latents_source="zeros").cond
        with torch.no_grad():
            x0 = method.student_x0(points[:, 0], torch.full((len(points),), 1000.0), cond)
        return (x0 - points[:, 2]).square().mean()

    unseen = with_pairs(method, 512, first=4096)
    before = error(unseen)
    for _ in range(500):
        optimizer.zero_grad()
        regression_term(regression_error(method.student_x0, pairs, batch.cond), raw.dropped)[0].backward()
        optimizer.step()
        schedule.step()
    after = error(unseen)
    variance = unseen.on_host[LATENTS][:, 2].var()
    assert before > 0.5 * variance
    assert after < 0.1 * variance
    # Another noise's end is no answer: it is the pairing that was learnt.
    shuffled = with_pairs(method, 512, first=4096)
    shuffled.on_host[LATENTS][:, 2] = shuffled.on_host[LATENTS][:, 2].roll(1, dims=0)
    assert error(shuffled) > 10 * after


# --- run files ---
TOY_ROLES = {name: {"path": "random" if trained else "analytic", "trainable": trained} for name, trained in ROLES.items()}


def write_run(folder: Path, family: str, *, roles: dict[str, Any], data: Path | None = None, **sections: Any) -> str:
    document = {
        "recipe": {"family": family, "method": "dmd2"},
        "roles": roles,
        "training": {
            "output_dir": str(folder / "out"),
            "max_train_steps": 4,
            "train_batch_size": 2,
            "trackers": [],
            **({"data_path": str(data)} if data else {}),
            **sections.pop("training", {}),
        },
        **sections,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return str(path)


def passes(**config: Any) -> fvd.accounting.Passes:
    run = make_method(**config).run
    return expected_passes(DMD2Config(dmd_denoising_steps=LADDER, **config), run)["student"]


def test_expected_passes_count_the_regressions():
    interval = {"generator_update_interval": 4}
    without, with_term = passes(**interval), passes(regression_weight=1.0, **interval)
    assert with_term.forwards == without.forwards + 0.25
    assert with_term.backwards == without.backwards + 0.25


def test_check_says_where_the_data_hold_no_pairs(tmp_path, tiny_wan, capsys):
    rows = [{"id": "a", **pack_tensor("text_embedding", torch.ones(1, 8)), "caption": "x"}]
    data = tmp_path / "data"
    data.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=TEXT_ONLY_SCHEMA), data / "a.parquet")
    roles = {name: {"path": str(tiny_wan), "trainable": trained} for name, trained in ROLES.items()}
    size = {"num_frames": 5, "num_height": 32, "num_width": 32}
    for weight, status in ((0.0, 0), (1.0, 1)):
        path = write_run(tmp_path, "wan", roles=roles, data=data, training=size, method_config={"regression_weight": weight})
        assert main(["check", path]) == status
        assert ("fvd data pairs" in capsys.readouterr().out) == bool(weight)


@pytest.fixture(scope="module")
def tiny_wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    make_tiny_wan = pytest.importorskip("fvd_wan.tiny").make_tiny_wan
    out = tmp_path_factory.mktemp("models") / "wan-tiny"
    make_tiny_wan(out)
    return Path(out)


def test_pairs_of_a_tiny_wan_are_made_and_trained_on(tmp_path, tiny_wan, capsys):
    """`fvd data pairs`, `fvd check` and `fvd run`, as a user types them."""
    captions, data = tmp_path / "captions.txt", tmp_path / "pairs"
    captions.write_text("a red ball\na blue cube\na green cone\n", encoding="utf-8")
    make = ["data", "pairs", "--captions", str(captions), "--family", "wan", "--model", str(tiny_wan), "--out", str(data)]
    make += ["--steps", "8", "--guidance-scale", "3", "--set", "flow_shift=3", "--num-frames", "5", "--height", "32"]
    make += ["--width", "32", "--device", "cpu"]
    assert main([*make, "--keep-timesteps", "1000,850"]) == 1  # 8 steps pass 833 and 875
    assert "nearest" in capsys.readouterr().err
    assert not data.exists()
    assert main([*make, "--keep-timesteps", "1000,750"]) == 0
    assert "3 sampled now" in capsys.readouterr().err
    assert main([*make, "--keep-timesteps", "1000,750"]) == 0
    assert "0 sampled now" in capsys.readouterr().err

    roles = {name: {"path": str(tiny_wan), "trainable": trained} for name, trained in ROLES.items()}
    path = write_run(
        tmp_path,
        "wan",
        roles=roles,
        data=data,
        training={"num_frames": 5, "num_height": 32, "num_width": 32},
        pipeline_config={"flow_shift": 3.0},
        method_config={
            "regression_weight": 0.25,
            "dmd_denoising_steps": [1000, 500],  # 500 is 750 after the shift
            "warp_denoising_step": True,
            "generator_update_interval": 2,
        },
    )
    assert main(["check", path]) == 0
    assert main(["run", path]) == 0
    metrics = read_metrics(tmp_path / "out")
    logged = [row for row in metrics if "train/regression_loss" in row]
    assert [row["step"] for row in logged] == [2, 4]
    for row in logged:
        assert row["train/regression_loss"] == pytest.approx(0.25 * row["train/dmd2/regression_error"], rel=1e-5)
    counted = sum(row["passes/student_backwards"] for row in metrics) / len(metrics)
    assert counted == 1.0  # two graphs at every second step

    # Where the run file gives no size, the trajectories do; another one is refused before weights are loaded.
    no_size = [part for key in ("num_frames", "num_height", "num_width") for part in ("--set", f"training.{key}=null")]
    assert main(["run", path, *no_size, "--set", f"training.output_dir={tmp_path / 'sizeless'}"]) == 0
    assert read_metrics(tmp_path / "sizeless")[3]["train/regression_loss"] == logged[1]["train/regression_loss"]
    capsys.readouterr()
    larger = ["--set", "training.num_height=64", "--set", f"training.output_dir={tmp_path / 'larger'}"]
    assert main(["run", path, *larger]) == 1
    stderr = capsys.readouterr().err
    assert "the trajectories in the data have latents [16, 2, 4, 4], and this run has [16, 2, 8, 4]" in stderr
    assert "parameters" not in stderr  # no role was loaded
    assert not (tmp_path / "larger").exists()

    # A rung that the pairs do not hold stops the run at its first step, and says which they hold.
    wrong = ["--set", "method_config.dmd_denoising_steps=[1000, 400]", "--set", f"training.output_dir={tmp_path / 'wrong'}"]
    assert main(["run", path, *wrong]) == 1
    assert "it has 999" in capsys.readouterr().err
    assert "train/" not in (tmp_path / "wrong/metrics.jsonl").read_text(encoding="utf-8")
