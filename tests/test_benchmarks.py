"""The benchmarks run, and count right. What they measure is for people: no test asserts a time."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

FOLDER = Path(__file__).parents[1] / "benchmarks"
SHORT = {
    "trainer_overhead": ["--rounds", "1", "--steps", "12", "--sizes", "40k"],
    "dmd2_schedule": ["--rounds", "1", "--steps", "6", "--intervals", "1", "--size", "40k", "--memory-size", "40k"],
    "plugins_list": ["--runs", "1"],
    "gpu_wan": ["--dry-run", "--steps", "1"],
}


@pytest.fixture
def modules(monkeypatch):
    """The benchmarks' own modules, importable."""
    monkeypatch.syspath_prepend(str(FOLDER))


def test_none_is_left_out(modules):
    import run_all

    shared = {"common", "inputs", "observer", "run_all", "runs"}
    proofs = {"one_step_dmd2"}  # tests/test_toy_proofs.py runs it
    assert {path.stem for path in FOLDER.glob("*.py")} - shared == set(run_all.BENCHMARKS) == set(SHORT) | proofs


@pytest.fixture
def run(modules, monkeypatch, capsys):
    """``run(name, *arguments)`` -> what the benchmark prints."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        assert not importlib.import_module(name).main()
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("name", SHORT)
def test_it_prints_a_table(run, name):
    printed = run(name, *SHORT[name])
    assert "| ---" in printed
    assert "torch" in printed.splitlines()[-1]  # the machine


def test_without_a_gpu_it_says_that_nothing_was_measured(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("gpu_wan").startswith("Not measured")


def test_flops_of_a_forward_pass(modules):
    """Against torch's own counter, which sees what runs; the timestep's embedding, which the formula leaves out, is small."""
    from dataclasses import replace

    import gpu_wan
    from inputs import SIZES

    size = replace(SIZES["2m"], latents=(4, 16, 16))
    network = WanTransformer3DModel(**size.transformer)
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        network(torch.zeros(1, 16, *size.latents), torch.zeros(1), torch.zeros(1, 512, size.text_dim))
    assert gpu_wan.forward_flops(size) == pytest.approx(counted.get_total_flops(), rel=0.01)


def test_expected_time_of_a_step(modules):
    from runs import expected

    times = {
        (("critic", 1), ("student", 1)): [1.0, 5.0],
        (("critic", 1), ("student", 2)): [2.0],
        (("critic", 2), ("student", 1), ("teacher", 2)): [8.0],
        (("critic", 2), ("student", 2), ("teacher", 2)): [10.0, 9.5],
    }
    assert expected(times, student_share=None) == pytest.approx((1 + 2 + 8 + 9.5) / 4)
    assert expected(times, student_share=0.2) == pytest.approx(0.8 * 1.5 + 0.2 * 8.75)


def test_what_counting_says(modules):
    """The figures of the schedule: 32.5 forwards against 44 in a cycle of five, 9.5 against 16 in one of one."""
    from dmd2_schedule import CASES

    cycles = [(case.interval * case.forwards("fvd"), case.interval * case.forwards("fastvideo")) for case in CASES]
    assert cycles == [(32.5, 44), (9.5, 16)]


def test_training_starts_without_what_only_encoding_needs():
    """Half a second of imports, before every run."""
    program = "import json, sys, fvd_wan.family, fvd.launch; print(json.dumps(sorted(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(json.loads(finished.stdout))
    assert not loaded & {"ftfy", "av", "wandb", "tensorboard", "transformers.models.t5.modeling_t5"}
    assert not any(name.startswith("diffusers.models.autoencoders.") for name in loaded)


def test_sections_of_other_benchmarks_stay(modules, tmp_path):
    import run_all

    path = tmp_path / "RESULTS.md"
    assert run_all.read_sections(path) == {}
    first = {name: f"## {heading}\n\n### one part\n\nfigures" for name, heading in run_all.BENCHMARKS.items()}
    run_all.write_sections(path, first)
    assert run_all.read_sections(path) == first
