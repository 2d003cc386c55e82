"""A family of models in diffusers format: folders become roles, and roles folders."""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from fvd.diffusers_format.components import DiffusersComponents
from fvd.diffusers_format.loading import fetch_components, fetch_transformers, load_network, quiet
from fvd.errors import FvdError, ModelError
from fvd.model_folder import SHARED_PARTS, find_transformers, read_config, read_json, read_pipeline_index, write_json
from fvd.roles import RoleHandle
from fvd.textvideo import TextToVideoFamily

if TYPE_CHECKING:
    from fvd.config.models import RoleConfig


class DiffusersFamily(TextToVideoFamily):
    """A subclass sets the class attributes below, ``name`` and ``adapter_class``."""

    pipeline_names: ClassVar[tuple[str, ...]]
    """The classes of diffusers that a whole folder may be of, ``("LTXPipeline",)``."""
    transformer_class: ClassVar[Any]
    """diffusers' class of the network, `LTXVideoTransformer3DModel`."""
    components_class: ClassVar[type[DiffusersComponents]]
    text_dim_key: ClassVar[str]
    """Where the transformer's config.json says the width of its text, ``caption_channels``."""
    blocks_name: ClassVar[str] = "transformer_blocks"
    """The transformer's attribute with its repeated blocks."""
    transformer_names: ClassVar[tuple[str, ...]] = ("transformer",)
    """Subfolders of a pipeline that hold a role's networks; the first is required."""

    def load_role(self, name: str, spec: RoleConfig) -> RoleHandle:
        """The transformers of a pipeline folder, or a folder that is itself one. Where the run computes in bfloat16, a frozen
        role is stored so: under autocast it computes the same from half the memory."""
        dtype = torch.float32 if spec.trainable or self.context.autocast_dtype is None else self.context.autocast_dtype
        modules: dict[str, nn.Module] = {
            part: load_network(self.transformer_class, folder, self.context.device, dtype)
            for part, folder in self.find_transformers(self.fetch_role(spec.path)).items()
        }
        handle = RoleHandle(name=name, family=self.name, trainable=bool(spec.trainable), modules=modules)
        handle.apply_trainable()
        return handle

    def fetch_role(self, location: str) -> Path:
        """The local folder of a role's ``path``; downloaded (once) when it is a hub id. Raises ModelError."""
        return fetch_transformers(location, self.transformer_names)

    def find_transformers(self, folder: Path) -> dict[str, Path]:
        """The subfolders to load. Raises ModelError where ``folder`` is a model of another kind."""
        if (folder / "model_index.json").is_file():
            read_pipeline_index(folder, self.pipeline_names)
        found = find_transformers(folder, self.transformer_names)
        for transformer in found.values():
            read_config(transformer, self.transformer_class.__name__)
        return found

    @cached_property
    def components(self) -> DiffusersComponents:
        return self.components_class(fetch_components(self.context.components_path), self.context)

    def check_role(self, handle: RoleHandle) -> None:
        """Latent channels and width of text must be those of VAE and text encoder."""
        components = self.components
        expected = components.latent_channels, components.text_dim
        for part, module in handle.modules.items():
            config: Any = module.config
            found = config["in_channels"], config[self.text_dim_key]
            if found != expected:
                raise ModelError(
                    f"role {handle.name!r}: its {part} has {found[0]} latent channels and text of width {found[1]}, but the "
                    f"VAE and text encoder in {components.folder} have {expected[0]} and {expected[1]}",
                    cure="All roles of a run share one VAE and text encoder; choose models of one kind.",
                )

    def shard_units(self, handle: RoleHandle) -> list[nn.Module]:
        """The repeated blocks of every transformer."""
        return [block for module in handle.modules.values() for block in module.get_submodule(self.blocks_name).children()]

    # --- export ---
    def export(self, handle: RoleHandle, out_dir: Path, format: str) -> None:
        """A whole pipeline, which diffusers' ``from_pretrained`` loads: the role's transformers, copies of the other parts,
        and this run's flow shift in the scheduler's configuration."""
        if format != "diffusers":
            raise FvdError(f"the family `{self.name}` cannot export to {format!r}", cure="It exports to: diffusers.")
        components = self.components.folder
        index = read_pipeline_index(components, self.pipeline_names)
        for part in SHARED_PARTS:
            if not (components / part).is_dir():
                raise ModelError(
                    f"{components} has no {part}", cure="Export needs a whole pipeline as pipeline_config.components_path."
                )
            shutil.copytree(components / part, out_dir / part)
        with quiet():
            for name, module in handle.modules.items():
                assert isinstance(module, self.transformer_class)
                module.save_pretrained(out_dir / name, safe_serialization=True)
        for name in self.transformer_names:
            index[name] = ["diffusers", self.transformer_class.__name__] if name in handle.modules else [None, None]
        write_json(out_dir / "model_index.json", self.exported_index(handle, index))
        set_flow_shift(out_dir / "scheduler" / "scheduler_config.json", self.context.config.flow_shift)
        if (components / "fvd.json").is_file():
            shutil.copyfile(components / "fvd.json", out_dir / "fvd.json")

    def exported_index(self, handle: RoleHandle, index: dict[str, Any]) -> dict[str, Any]:
        """``model_index.json`` of an exported role. Default: ``index``, that of the components with the role's networks."""
        return index


def set_flow_shift(path: Path, flow_shift: float) -> None:
    """So that diffusers samples with the shift of the run, not with one that follows the size of the video."""
    config = read_json(path)
    if config.get("_class_name") == "FlowMatchEulerDiscreteScheduler":
        write_json(path, {**config, "shift": flow_shift, "use_dynamic_shifting": False, "shift_terminal": None})
    elif "flow_shift" in config:
        write_json(path, {**config, "flow_shift": flow_shift})
