"""One tiny Wan model for the whole folder, and what is built from it. diffusers is slow to import: once a process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import WanPipeline

import fvd
from fvd_wan.adapter import WanAdapter
from fvd_wan.config import WanConfig
from fvd_wan.family import WanFamily
from fvd_wan.tiny import make_tiny_wan

CPU = torch.device("cpu")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only: tests that change files copy it (`tiny_copy`)."""
    out = tmp_path_factory.mktemp("models") / "wan-tiny"
    make_tiny_wan(out)
    return out


@pytest.fixture
def tiny_copy(tiny_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_path, tmp_path / "model"))


@pytest.fixture(scope="session")
def pipeline(tiny_path: Path) -> WanPipeline:
    """diffusers' own reading of the tiny model."""
    pipe = WanPipeline.from_pretrained(tiny_path)
    pipe.set_progress_bar_config(disable=True)
    return pipe


Build = Callable[..., SimpleNamespace]


@pytest.fixture(scope="session")
def build(tiny_path: Path) -> Build:
    """``build(path=…, trainable=…, roles={name: path}, **context, config={…})`` -> family, roles, handle, adapter."""

    def make(
        path: Path = tiny_path,
        *,
        roles: dict[str, Path] | None = None,
        trainable: bool = False,
        config: dict[str, Any] | None = None,
        **context: Any,
    ) -> SimpleNamespace:
        given = {"config": WanConfig(**(config or {})), "components_path": str(path), "device": CPU, **context}
        family = WanFamily(fvd.FamilyContext(**given))
        handles = [
            family.load_role(name, fvd.RoleConfig(path=str(folder), trainable=trainable))
            for name, folder in (roles or {"student": path}).items()
        ]
        manager = fvd.RoleManager(handles)
        return SimpleNamespace(family=family, roles=manager, handle=handles[0], adapter=family.build_adapter(manager))

    return make


@pytest.fixture(scope="session")
def shared(build: Build) -> SimpleNamespace:
    """A built tiny model that no test changes."""
    return build()


@pytest.fixture(scope="session")
def adapter(shared: SimpleNamespace) -> WanAdapter:
    return shared.adapter


@pytest.fixture
def raw_batch() -> fvd.RawBatch:
    """Two samples as the loader yields them: un-normalised latents, text padded to 512."""
    generator = torch.Generator().manual_seed(7)
    text = torch.zeros(2, 512, 32)
    text[0, :4] = torch.randn(4, 32, generator=generator)
    text[1, :9] = torch.randn(9, 32, generator=generator)
    mask = (text.abs().sum(-1) > 0).float()
    tensors = {
        "vae_latent": torch.randn(2, 16, 3, 8, 8, generator=generator),
        "text_embedding": text,
        "text_embedding_mask": mask,
    }
    return fvd.RawBatch(tensors, torch.tensor([False, False]), [{"id": "a"}, {"id": "b"}])
