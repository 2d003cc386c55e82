"""What tests across distributions share: a tiny Wan pipeline, real clips, prepared data, and run files for both methods."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
import third_party as third_parties
import yaml

from fvd.cli.main import main


def write_mp4(path: Path, *, frames: int = 16, size: int = 64, fps: int = 16, color: int = 0) -> Path:
    """A real H.264 file: a bright square that moves over a dark ground."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for index in range(frames):
            image = np.full((size, size, 3), 30, dtype=np.uint8)
            left = 2 + 2 * index % (size // 2)
            image[size // 4 : size // 2, left : left + size // 4, color] = 230
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def _is_a_file_beside(origin: Path, path: list[str]) -> bool:
    """Whether a module is one file in a folder that is not on ``path``."""
    return origin.name != "__init__.py" and str(origin.parent) not in path


@pytest.fixture(autouse=True)
def _local_plugins_are_forgotten() -> Iterator[None]:
    """``--plugin FILE`` puts the file's folder on ``sys.path`` and its module into ``sys.modules``, for good: in these tests a
    process is many command lines."""
    before, known = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = [entry for entry in sys.path if entry in before]
    for name, module in list(sys.modules.items()):
        origin = vars(module).get("__file__") if isinstance(module, ModuleType) else None
        # Not by what was added to sys.path: `monkeypatch` may have put that back already.
        if isinstance(origin, str) and "." not in name and name not in known and _is_a_file_beside(Path(origin), before):
            del sys.modules[name]


@pytest.fixture(scope="session", name="write_mp4")
def _write_mp4() -> Callable[..., Path]:
    return write_mp4


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "wan-tiny"
    assert main(["wan", "tiny", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for index, caption in enumerate(("a red square moving right", "a green square moving right")):
        write_mp4(folder / f"{index}.mp4", color=index)
        (folder / f"{index}.txt").write_text(caption, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def prepared_clips(tmp_path_factory, tiny_wan, clips) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "clips"
    assert main(["data", "prepare", str(clips), "--family", "wan", "--model", str(tiny_wan), "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def run_documents(tiny_wan, prepared_clips, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """A run file for each method, as plain data, without ``training.output_dir``."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("a red square\n", encoding="utf-8")
    training = {
        "data_path": str(prepared_clips),
        "max_train_steps": 12,
        "train_batch_size": 2,
        "learning_rate": 1e-3,
        "validation_dataset_file": str(prompts),
    }
    role = {"path": str(tiny_wan)}
    return {
        "finetune": {
            "recipe": {"family": "wan", "method": "finetune"},
            "roles": {"student": role},
            "training": {**training, "validation_sampling_steps": 2},
            "pipeline_config": {"flow_shift": 3},
            "method_config": {"timestep_density": "logit_normal"},
        },
        "dmd2": {
            "recipe": {"family": "wan", "method": "dmd2"},
            "roles": {"student": role, "teacher": role, "critic": {**role, "optimizer": {"learning_rate": 1e-3}}},
            "training": training,
            "method_config": {
                "dmd_denoising_steps": [1000, 750, 500, 250],
                "generator_update_interval": 2,
                "real_score_guidance_scale": 2.0,
            },
        },
    }


@pytest.fixture
def write_run_file(run_documents, tmp_path) -> Callable[..., Path]:
    """``write_run_file("dmd2", output_dir=…, training={…}, method_config={…})`` -> path of a run file."""

    def write(method: str, *, output_dir: Path, name: str = "run.yaml", **sections: dict[str, Any]) -> Path:
        document = copy.deepcopy(run_documents[method])
        document["training"]["output_dir"] = str(output_dir)
        for section, changes in sections.items():
            document.setdefault(section, {}).update(changes)
        path = tmp_path / name
        path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def third_party(tmp_path) -> Iterator[Callable[..., None]]:
    """``third_party("acme-wan", "fvd-strip")`` installs distributions of tests/thirdparty until the test ends."""
    with ExitStack() as stack:
        yield lambda *names: stack.enter_context(third_parties.installed(tmp_path / "site-packages", *names))
