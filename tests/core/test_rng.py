"""Randomness is a function of (seed, step, position): nothing else may change a draw."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fvd.rng import StepRandom, derive_seed, randn_per_sample, seeded_generator

CPU = torch.device("cpu")
REFERENCE = torch.zeros(4, 2, 3)


def step_random(*, seed: int = 0, step: int = 1, first_position: int = 0, batch_size: int = 4) -> StepRandom:
    return StepRandom.for_step(seed=seed, step=step, first_position=first_position, batch_size=batch_size, device=CPU)


def draws(rng: StepRandom) -> list[torch.Tensor]:
    reference = torch.zeros(len(rng.per_sample), 2, 3)
    return [rng.rand(), rng.randn(), rng.randn_like(reference), rng.rand()]


def test_seed_is_the_same_on_every_machine_and_python():
    assert derive_seed("train", 0, 1, 2) == 3696132909517059204
    code = "from fvd.rng import derive_seed; print(derive_seed('train', 0, 1, 2))"
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        )
        assert int(done.stdout) == derive_seed("train", 0, 1, 2)


def test_seeds_fit_a_generator_and_differ():
    seeds = {derive_seed("train", seed, step, position) for seed in range(5) for step in range(20) for position in range(20)}
    assert len(seeds) == 5 * 20 * 20
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed("train", 1, 12) != derive_seed("train", 11, 2)


def test_equal_keys_give_equal_draws():
    for first, second in zip(draws(step_random()), draws(step_random()), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("change", [{"seed": 1}, {"step": 2}, {"first_position": 4}])
def test_each_part_of_the_key_matters(change):
    for first, second in zip(draws(step_random()), draws(step_random(**change)), strict=True):
        assert not torch.isclose(first, second).any()


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_micro_batches_and_ranks_draw_what_the_whole_batch_draws(micro_batch):
    whole = draws(step_random())
    parts = [draws(step_random(first_position=p, batch_size=micro_batch)) for p in range(0, 4, micro_batch)]
    for index, tensor in enumerate(whole):
        assert torch.equal(torch.cat([part[index] for part in parts]), tensor)


def test_shared_draws_do_not_depend_on_the_position():
    first, second = step_random(), step_random(first_position=8, batch_size=1)
    assert [first.shared_index(100) for _ in range(5)] == [second.shared_index(100) for _ in range(5)]


def test_shared_and_per_sample_draws_do_not_disturb_each_other():
    disturbed = step_random()
    disturbed.shared_index(100)
    assert torch.equal(disturbed.rand(), step_random().rand())
    drawn = step_random()
    drawn.rand()
    assert drawn.shared_index(10**6) == step_random().shared_index(10**6)


def test_shared_index_is_uniform():
    counts = torch.bincount(torch.tensor([step_random(step=step).shared_index(4) for step in range(4000)]), minlength=4)
    assert len(counts) == 4
    chi_square = float(((counts - 1000.0) ** 2 / 1000).sum())
    assert chi_square < 16.3  # 0.1 % level, 3 degrees of freedom


def test_draws_have_the_moments_of_their_laws():
    rng = step_random(batch_size=2000)
    uniform, normal, field = rng.rand(), rng.randn(), rng.randn_like(torch.zeros(2000, 3))
    assert (uniform.shape, normal.shape, field.shape) == ((2000,), (2000,), (2000, 3))
    assert uniform.dtype == normal.dtype == field.dtype == torch.float32
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.03)
    for tensor in (normal, field):
        assert tensor.mean().item() == pytest.approx(0, abs=0.1)
        assert tensor.std().item() == pytest.approx(1, abs=0.07)
    assert torch.corrcoef(field.T).fill_diagonal_(0).abs().max() < 0.1


def test_global_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    draws(step_random())
    step_random().shared_index(4)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_low_precision_is_a_rounding_of_the_float32_draw():
    def draw(dtype: torch.dtype) -> torch.Tensor:
        return randn_per_sample((2, 3), [seeded_generator(i) for i in range(4)], device=CPU, dtype=dtype)

    assert torch.equal(draw(torch.bfloat16), draw(torch.float32).to(torch.bfloat16))
