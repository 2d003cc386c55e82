"""Every installed family with every installed method: two steps of a real run, or the refusal that the matrix announces.

No pair is written down: families and methods are what is installed, core's toys, and the distributions of
``tests/thirdparty``. A family brings its own tiny model, a method its own settings (`fvd.Example`).
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import third_party
import yaml

from fvd.cli.main import main
from fvd.config.example import example_run_file
from fvd.plugins import Plugins, load_plugins
from fvd.plugins.fit import missing_primitives
from fvd.testing import fake_dist

TOYS = ("toy", "toy_noise")

POOR_FAMILY = """
    import fvd

    @fvd.hookimpl
    def fvd_families():
        provides = {"prepare_batch", "num_train_timesteps", "predict"}
        return [fvd.FamilySpec(name="poor", target="acme_poor.family:Poor", provides=provides)]
"""
"""So little that no method fits."""


def everything(site: Path) -> Any:
    fake_dist(site, "acme-poor", entry_points={"poor": "acme_poor"}, modules={"acme_poor": POOR_FAMILY})
    return third_party.installed(site, *third_party.NAMES)


def load_everything() -> Plugins:
    return load_plugins(request=TOYS)


with tempfile.TemporaryDirectory() as folder, everything(Path(folder)):
    FAMILIES, METHODS = load_everything().names("family"), load_everything().names("method")


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory) -> Iterator[None]:
    site = tmp_path_factory.mktemp("site")
    with everything(site):
        yield


@pytest.fixture(scope="module")
def parts_of(tmp_path_factory, clips) -> Callable[[str], dict[str, str]]:
    """``parts_of(family)`` -> its tiny model and data prepared with it, as keys of a run file; empty where the family makes
    both itself."""

    @cache
    def make(family: str) -> dict[str, str]:
        plugins = load_everything()
        spec: Any = plugins.spec("family", family)
        kind: Any = plugins.spec("dataset_kind", spec.dataset_kind)
        parts = {}
        folder = tmp_path_factory.mktemp("parts")
        if spec.tiny:
            module, _, function = spec.tiny.partition(":")
            getattr(import_module(module), function)(folder / "model")
            parts["path"] = str(folder / "model")
        if kind.reads_folders:
            arguments = ["--family", family, "--model", parts["path"], "--out", str(folder / "data")]
            assert main(["data", "prepare", str(clips), *arguments]) == 0
            parts["data_path"] = str(folder / "data")
        return parts

    return make


def write_run_file(path: Path, family: str, method: str, parts: dict[str, str]) -> Path:
    """What `fvd plugins example` writes, made small."""
    document = yaml.safe_load(example_run_file(load_everything(), family, method))
    for role in document["roles"].values():
        role["path"] = parts.get("path", role["path"])
    of_a_size = ("num_frames", "num_height", "num_width")  # the data have one
    training = {key: value for key, value in document["training"].items() if key not in of_a_size}
    training |= {"output_dir": str(path.parent / "out"), "max_train_steps": 2, "train_batch_size": 2}
    training |= {"gradient_accumulation_steps": 1} | {key: parts[key] for key in ("data_path",) if key in parts}
    path.write_text(yaml.safe_dump({**document, "training": training}), encoding="utf-8")
    return path


def test_what_is_there_is_tried():
    assert {"ltx", "acme-wan:wan", "fvd-wan:wan", "poor", *TOYS} <= set(FAMILIES)
    assert {"finetune", "dmd2", "consistency", "toy"} <= set(METHODS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_family_and_method(tmp_path, parts_of, capfd, family, method):
    plugins = load_everything()
    missing = missing_primitives(plugins.spec("method", method), plugins.spec("family", family))
    run_file = write_run_file(tmp_path / "run.yaml", family, method, {} if missing else parts_of(family))
    capfd.readouterr()
    if missing:
        assert main(["check", str(run_file)]) == 1
        said = capfd.readouterr().out
        assert "[P11]" in said
        assert all(name in said for names in missing.values() for name in names)
        assert main(["run", str(run_file)]) == 1
        assert not (tmp_path / "out").exists()
        return
    assert main(["check", str(run_file)]) == 0
    assert main(["run", str(run_file)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    losses = [value for row in rows for name, value in row.items() if name.endswith("loss")]
    norms = [value for row in rows for name, value in row.items() if name.startswith("grad_norm/")]
    assert all(math.isfinite(value) for value in losses + norms)
    assert losses
    assert max(norms) > 0
    assert (tmp_path / "out/checkpoints/step-00000002").is_dir()
    lock = json.loads((tmp_path / "out/run.lock.json").read_text())
    used = {component for plugin in lock["plugins"] for component in plugin["components"]}
    assert {f"family:{family.rpartition(':')[2]}", f"method:{method}"} <= used
