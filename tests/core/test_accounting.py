"""Network passes: what is counted, in which unit, and what differs by more than chance."""

from __future__ import annotations

import logging
import random
import time

import pytest
import torch
from small_video import LATENT_SHAPE, SmallVideoAdapter, small_raw_batch, small_roles
from torch import nn
from torch.utils.checkpoint import checkpoint

import fvd
from fvd.accounting import Passes, PassHistory, describe_passes
from fvd.cli.main import main
from fvd.pass_counter import PassCounter, first_tensor


@pytest.fixture
def counted():
    roles = small_roles({"student": True, "teacher": False})
    adapter = SmallVideoAdapter()
    counter = PassCounter(roles)
    counter.start()
    batch = adapter.prepare_batch(small_raw_batch(2), latents_source="data")

    def predict(role: str, repeat: int = 1) -> torch.Tensor:
        cond = adapter.encode_prompts(["a b"] * 2 * repeat)
        return adapter.bind(roles[role]).predict(
            batch.latents.repeat(repeat, 1, 1, 1, 1), torch.full((2 * repeat,), 500.0), cond
        )

    return counter, predict


def test_forwards_with_and_without_gradient(counted):
    counter, predict = counted
    predict("student").mean().backward()
    with torch.no_grad():
        predict("student")
        predict("teacher", repeat=2)  # cond and uncond in one batch
    assert counter.passes(samples=2) == {"student": Passes(2.0, 1.0), "teacher": Passes(2.0, 0.0)}
    assert counter.passes(samples=4)["teacher"] == Passes(1.0, 0.0)  # of two micro-batches one had none
    counter.start()
    assert counter.passes(samples=2) == {"student": Passes(0.0, 0.0), "teacher": Passes(0.0, 0.0)}


def test_a_frozen_network_that_gradient_flows_through_makes_a_backward():
    """Its parameters need none, its input does."""
    roles = small_roles({"teacher": False})
    adapter, counter = SmallVideoAdapter(), PassCounter(roles)
    x = torch.randn(2, *LATENT_SHAPE, requires_grad=True)
    adapter.predict(roles["teacher"], x, torch.full((2,), 500.0), adapter.encode_prompts(["a"] * 2)).sum().backward()
    assert counter.passes(2) == {"teacher": Passes(1.0, 1.0)}


def test_after_closing_nothing_is_counted(counted):
    counter, predict = counted
    counter.close()
    predict("student")
    assert counter.passes(2)["student"] == Passes(0.0, 0.0)


class Blocks(nn.Module):
    """Two blocks whose calls are counted by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.block_calls = 0

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, str]:
        for block in self.blocks:
            x = checkpoint(self.run_block, block, x, use_reentrant=False)
        return x, "something else"

    def run_block(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        self.block_calls += 1
        return torch.tanh(block(x))


def test_recomputed_blocks_count_once():
    module = Blocks()
    counter = PassCounter([fvd.RoleHandle("student", "none", True, {"transformer": module})])
    module(torch.randn(3, 4))[0].sum().backward()
    assert module.block_calls == 4  # two blocks, and again in the backward pass
    assert counter.passes(3) == {"student": Passes(1.0, 1.0)}


def test_a_whole_network_that_is_recomputed_counts_once():
    """`fvd.recompute` replaces ``forward``, which a family may do to the network itself."""
    module = nn.Linear(4, 4)
    inner, calls = module.forward, []
    module.forward = lambda x: checkpoint(lambda y: calls.append(1) or inner(y), x, use_reentrant=False)
    counter = PassCounter([fvd.RoleHandle("student", "none", True, {"transformer": module})])
    module(torch.randn(3, 4)).square().sum().backward()
    assert counter.passes(3) == {"student": Passes(1.0, 1.0)}


def test_two_experts_share_a_batch():
    experts = {name: nn.Linear(4, 4) for name in ("transformer", "transformer_2")}
    counter = PassCounter([fvd.RoleHandle("student", "none", True, experts)])
    experts["transformer"](torch.randn(3, 4))
    experts["transformer_2"](torch.randn(1, 4))
    assert counter.passes(4) == {"student": Passes(1.0, 1.0)}


def test_what_a_network_returns():
    tensor = torch.zeros(2, 3)
    assert first_tensor(tensor) is tensor
    assert first_tensor({"loss": None, "sample": (tensor,)}) is tensor
    assert first_tensor(("text", [tensor, torch.ones(1)])) is tensor
    assert first_tensor(torch.zeros(())) is None
    assert first_tensor(None) is None


# --- expected ---
def history(steps: int, seed: int, *, count: int = 4, interval: int = 5, more: float = 0.0) -> PassHistory:
    """A student of ``count`` steps with a shared rollout, due at every interval-th step."""
    generator, made = random.Random(seed), PassHistory()
    for step in range(1, steps + 1):
        made.add({"student": Passes(1 + generator.randrange(count) + more, float(step % interval == 0))})
    return made


EXPECTED = {"student": Passes(2.5, 0.2)}


@pytest.mark.parametrize("steps", [20, 23, 101, 3000])
def test_chance_and_a_cycle_that_is_cut_are_no_surprise(steps):
    assert [history(steps, seed).unexpected(EXPECTED) for seed in range(50)] == [[]] * 50
    assert history(steps, 0, interval=100).unexpected({"student": Passes(2.5, 0.01)}) == []


def test_half_a_forward_more_is_found_after_some_hundred_steps():
    found = [history(400, seed, more=0.5).unexpected(EXPECTED) for seed in range(20)]
    assert found == [["student forwards"]] * 20
    assert history(400, 0, interval=1).unexpected(EXPECTED) == ["student backwards"]
    assert history(19, 0, more=5).unexpected(EXPECTED) == []  # too few to say


def test_a_role_that_is_expected_and_never_called_is_found():
    assert history(100, 0).unexpected({"teacher": Passes(0.4, 0)}) == ["teacher forwards"]


def test_how_passes_are_told():
    passes = {"student": Passes(2.1, 0.2), "teacher": Passes(0.4, 0.0), "critic": Passes(1, 1)}
    assert describe_passes(passes) == "student 2.1 forward, 0.2 backward; teacher 0.4 forward; critic 1 forward, 1 backward"
    assert history(4, 0, count=1).mean() == {"student": Passes(1.0, 0.0)}


def test_counting_costs_next_to_nothing():
    """A hook of a few Python operations; the limit is ten times what it takes."""
    module, x = nn.Identity(), torch.zeros(1, 1)

    def seconds_a_call() -> float:
        best = float("inf")
        for _ in range(5):
            started = time.perf_counter()
            for _ in range(500):
                module(x)
            best = min(best, (time.perf_counter() - started) / 500)
        return best

    without = seconds_a_call()
    PassCounter([fvd.RoleHandle("student", "none", True, {"transformer": module})])
    assert seconds_a_call() - without < 2e-5


RUN = """
recipe: {{family: toy, method: {method}}}
roles: {roles}
training: {{output_dir: {out}, max_train_steps: 40, train_batch_size: 8, training_state_checkpointing_steps: 0}}
method_config: {config}
"""


@pytest.mark.parametrize(
    ("method", "roles", "config", "counted"),
    [
        ("finetune", "{student: {path: random}}", "{}", "student 1 forward, 1 backward"),
        (
            "dmd2",
            "{student: {path: random}, teacher: {path: analytic}, critic: {path: random}}",
            "{dmd_denoising_steps: [1000, 500], generator_update_interval: 2, real_score_guidance_scale: 2}",
            "0.5 backward; teacher 1 forward; critic 1.5 forward, 1 backward",
        ),
    ],
)
def test_a_run_says_what_it_expects_and_what_it_has_counted(method, roles, config, counted, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="fvd")
    (tmp_path / "run.yaml").write_text(RUN.format(method=method, roles=roles, config=config, out=tmp_path / "out"))
    assert main(["run", str(tmp_path / "run.yaml")]) == 0
    messages = [record.getMessage() for record in caplog.records]
    (expected,) = [message for message in messages if message.startswith("passes expected a step, on average: ")]
    (found,) = [message for message in messages if message.startswith("passes counted a step, on average: ")]
    assert expected.endswith(counted)
    assert found.endswith(counted)
    assert not [message for message in messages if "other than expected" in message]
    alarms = [message for message in messages if message.startswith("[")]
    assert [alarm for alarm in alarms if not alarm.startswith("[teacher_guided_twice]")] == []
