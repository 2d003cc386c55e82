"""The toy families at build time: networks from a word or a folder, and back into a folder."""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from pickle import UnpicklingError
from typing import NoReturn

import torch
from torch import nn

import fvd
from fvd.testing.toy.adapter import MixtureAdapter, ToyAdapter
from fvd.testing.toy.config import ToyConfig
from fvd.testing.toy.data import points_spec
from fvd.testing.toy.mixture import circle
from fvd.testing.toy.network import AnalyticNetwork, FlowVelocity, Parametrisation, Shape, ToyNetwork, random_network

CONFIG, WEIGHTS = "config.json", "weights.pt"


class MixtureFamily(fvd.Family):
    """What both toy families share.

    Paths of roles: ``random`` or ``random:SEED``, a network with random weights, the same for the same seed in every run and
    role; ``analytic``, the exact denoiser, which has nothing to train; or a folder that `fvd export` has written.
    """

    name: str

    def __init__(self, context: fvd.FamilyContext) -> None:
        super().__init__(context)
        if not isinstance(context.config, ToyConfig):
            raise TypeError(f"the family {self.name} needs a ToyConfig, got {type(context.config).__name__}")
        self.config: ToyConfig = context.config
        self.mixture = circle(self.config.modes, self.config.radius, self.config.std, device=context.device)

    @abstractmethod
    def parametrisation(self) -> Parametrisation:
        """This family's schedule and what its networks predict, on the context's device."""

    def load_role(self, name: str, spec: fvd.RoleConfig) -> fvd.RoleHandle:
        network = self._network(name, spec).to(self.context.device)
        handle = fvd.RoleHandle(name=name, family=self.name, trainable=bool(spec.trainable), modules={"transformer": network})
        handle.apply_trainable()
        return handle

    def _network(self, role: str, spec: fvd.RoleConfig) -> nn.Module:
        word, colon, seed = spec.path.partition(":")
        if spec.path == "analytic":
            if spec.trainable:
                raise fvd.ModelError(
                    f"role {role!r}: path analytic is the exact denoiser and has no weights to train", cure="Use path: random."
                )
            return AnalyticNetwork(self.parametrisation(), self.mixture)
        if word == "random" and (seed.isdecimal() or not colon):
            modes, dimensions = self.mixture.means.shape
            shape = Shape(dimensions, modes, self.mixture.root_mean_square)
            return random_network(self.parametrisation(), shape, int(seed or 0))
        return self._load(role, Path(spec.path).expanduser())

    def _load(self, role: str, folder: Path) -> ToyNetwork:
        if not (folder / CONFIG).is_file():
            raise fvd.ModelError(
                f"role {role!r}: {folder} is no folder of an exported toy",
                cure="A path of the toy is random, random:SEED, analytic, or a folder that `fvd export` has written.",
            )
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            network = ToyNetwork(self.parametrisation(), Shape(**config["network"]))
            network.load_state_dict(torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, UnpicklingError) as error:
            raise fvd.ModelError(
                f"role {role!r}: the exported toy in {folder} is damaged ({type(error).__name__})", cure="Export it again."
            ) from error
        modes, dimensions = self.mixture.means.shape
        found = (config.get("family"), network.shape.dimensions, network.shape.modes)
        if found != (self.name, dimensions, modes):
            self._refuse(role, folder, found)
        return network

    def _refuse(self, role: str, folder: Path, found: tuple[object, int, int]) -> NoReturn:
        family, dimensions, modes = found
        raise fvd.ModelError(
            f"role {role!r}: {folder} is of family {family} with {modes} modes in {dimensions} dimensions, and this run is of "
            f"{self.name} with {self.config.modes} in {self.mixture.means.shape[1]}",
            cure="Correct recipe.family or pipeline_config.modes.",
        )

    def data_spec(self) -> fvd.DataSpec:
        return points_spec(self.mixture)

    def build_encoders(self) -> fvd.Encoders:
        raise fvd.FvdError(
            f"there is nothing to prepare for the family {self.name}: it makes its data itself",
            cure="Run without training.data_path.",
        )

    def shard_units(self, handle: fvd.RoleHandle) -> list[nn.Module]:
        network = handle.modules["transformer"]
        return list(network.blocks) if isinstance(network, ToyNetwork) else []

    def export(self, handle: fvd.RoleHandle, out_dir: Path, format: str) -> None:
        network = handle.modules["transformer"]
        if format != "toy":
            raise fvd.FvdError(f"the family {self.name} does not export to {format!r}", cure="It exports to: toy.")
        if not isinstance(network, ToyNetwork):
            raise fvd.ModelError(f"role {handle.name!r} is the exact denoiser: it has no weights to export")
        config = {"family": self.name, "network": network.describe()}
        (out_dir / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        torch.save({name: tensor.cpu() for name, tensor in network.state_dict().items()}, out_dir / WEIGHTS)


class ToyFamily(MixtureFamily):
    """Flow matching."""

    name = "toy"

    def parametrisation(self) -> Parametrisation:
        return FlowVelocity()

    def build_adapter(self, roles: fvd.RoleManager) -> MixtureAdapter:
        return ToyAdapter(self.context, self.config, self.mixture)
