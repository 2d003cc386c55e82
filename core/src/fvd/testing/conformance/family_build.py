"""A family built as small as it can be, with data that went the real way: what the checks of families share. And B101."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fvd.adapters import Adapter, Batch
from fvd.config.models import PipelineConfig, RoleConfig
from fvd.data.loader import Loader
from fvd.data.prepare import PrepareRequest, prepare
from fvd.data.spec import DataSpec, RawBatch, VideoGeometry
from fvd.data.video import write_video
from fvd.errors import FvdError
from fvd.families import ClipPlan, Encoders, Family, FamilyContext
from fvd.plugins.targets import import_target
from fvd.rng import randn_per_sample, seeded_generator
from fvd.roles import RoleHandle, RoleManager
from fvd.specs import DatasetKindSpec, FamilySpec
from fvd.testing.conformance.asserts import require, without_output
from fvd.testing.conformance.contract import example_config
from fvd.testing.conformance.examination import Subject
from fvd.testing.conformance.outcomes import CheckSkipped

CAPTIONS = ("a red square moves to the right", "snow falls")
"""Of different lengths: what pads by the longest text of a batch shows."""
CPU = torch.device("cpu")
FPS = 8.0


class FamilyBench:
    """One family of two roles, ``student`` (trained) and ``teacher`` (frozen), on the CPU in float32.

    path, frozen_path: what ``roles.<role>.path`` says. geometry: the smallest size that the family allows, wider than
    high, so that swapped axes show; of families that make their data themselves, a size that means little.
    """

    def __init__(self, subject: Subject) -> None:
        spec = subject.spec
        assert isinstance(spec, FamilySpec)
        self.subject = subject
        self.spec = spec
        self.path, self.frozen_path = _model_paths(subject, spec)
        config = example_config(subject)
        assert isinstance(config, PipelineConfig)
        self.config = config
        context = FamilyContext(config=config, components_path=config.components_path or self.path, device=CPU)
        family_class: type[Family] = subject.plugins.load("family", subject.name)
        self.dataset_kind = subject.plugins.dataset_kind_of(spec)
        kind = subject.plugins.spec("dataset_kind", self.dataset_kind)
        assert isinstance(kind, DatasetKindSpec)
        self.reads_folders = kind.reads_folders
        first = family_class(context)
        self.data_spec: DataSpec = first.data_spec()
        self.encoders: Encoders | None = first.build_encoders() if self.reads_folders else None
        self.geometry = smallest_geometry(self.encoders) if self.encoders else VideoGeometry(num_frames=1, height=32, width=64)
        dropout = 0.5 if self.drops_conditioning else 0.0
        self.context = replace(context, geometry=self.geometry, conditioning_dropout_rate=dropout)
        self.family = family_class(self.context)
        self.student = self.load_role("student", self.path, trainable=True)
        self.teacher = self.load_role("teacher", self.frozen_path, trainable=False)
        self.roles = RoleManager([self.student, self.teacher])
        self.adapter: Adapter = self.family.build_adapter(self.roles)
        self.adapter.on_train_start()
        if "ensure_negative_conditioning" in spec.provides:
            self.adapter.ensure_negative_conditioning()

    def load_role(self, name: str, path: str, *, trainable: bool) -> RoleHandle:
        return self.family.load_role(name, RoleConfig(family=self.spec.name, path=path, trainable=trainable))

    @property
    def drops_conditioning(self) -> bool:
        return self.data_spec.conditioning_dropout != "forbidden"

    def require_primitives(self, *names: str) -> None:
        """Raise CheckSkipped where the family does not declare them all."""
        missing = set(names) - set(self.spec.provides)
        if missing:
            raise CheckSkipped(f"the family does not provide {', '.join(sorted(missing))}")

    # --- data ---
    @cached_property
    def data_folder(self) -> Path:
        """Two clips, prepared as `fvd data prepare` does."""
        assert self.encoders is not None
        clips = self.subject.make_folder("clips")
        for number, caption in enumerate(CAPTIONS):
            write_video(clips / f"{number}.mp4", synthetic_video(self.geometry, number), FPS)
            (clips / f"{number}.txt").write_text(caption, encoding="utf-8")
        return self.prepare(clips, ClipPlan(fps=FPS, geometry=self.geometry))

    def prepare(self, clips: Path, plan: ClipPlan | None) -> Path:
        assert self.encoders is not None
        out = self.subject.make_folder("prepared")
        request = PrepareRequest(clips=clips, out=out, family=self.spec.name, model=self.path, plan=plan, strict=True)
        with without_output():
            prepare(request, self.encoders)
        return out

    def loader(self, folder: Path | None, *, needs_latents: bool = True, dropout_rate: float = 0.0) -> Loader:
        """What core would build for a run on ``folder``."""
        open_dataset = self.subject.plugins.load("dataset_kind", self.dataset_kind)
        sources = [] if folder is None else [(folder, 1)]
        dataset = open_dataset(sources, self.data_spec, needs_latents=needs_latents)
        return Loader(
            dataset, self.data_spec, batch_size=8, seed=0, dropout_rate=dropout_rate, read_ahead=0, needs_latents=needs_latents
        )

    @cached_property
    def raw_batch(self) -> RawBatch:
        """Two samples with different captions, nothing dropped."""
        batches = iter(self.loader(self.data_folder if self.reads_folders else None))
        raw = next(batches)
        batches.close()
        return select(raw, _two_captions(raw))

    @cached_property
    def batch(self) -> Batch:
        return self.adapter.prepare_batch(self.raw_batch, latents_source="data")

    def single(self, position: int) -> Batch:
        """One sample of `batch`, prepared alone."""
        return self.adapter.prepare_batch(select(self.raw_batch, [position]), latents_source="data")

    # --- what is predicted on ---
    @property
    def x0(self) -> Tensor:
        return self.batch.latents

    def noise(self, key: str = "noise") -> Tensor:
        """Standard normal of the shape of `x0`, the same for the same ``key``."""
        return randn_per_sample(self.x0.shape[1:], [seeded_generator(key, b) for b in range(len(self.x0))], device=CPU)

    def t(self, *fractions: float) -> Tensor:
        """Timesteps [B] at these fractions of `num_train_timesteps`; one fraction serves all samples."""
        chosen = fractions * len(self.x0) if len(fractions) == 1 else fractions
        return torch.tensor(chosen, dtype=torch.float32) * self.adapter.num_train_timesteps

    @torch.no_grad()
    def predict(self, handle: RoleHandle, t: Tensor, cond: object = None, x_t: Tensor | None = None) -> Tensor:
        """The network's output, float32 of the shape of ``x_t``, without a graph."""
        x_t = self.noise() if x_t is None else x_t
        return self.adapter.bind(handle).predict(x_t, t, self.batch.cond if cond is None else cond)


def _model_paths(subject: Subject, spec: FamilySpec) -> tuple[str, str]:
    if not spec.tiny:
        paths = spec.example.path, spec.example.frozen_path or spec.example.path
        require(bool(spec.example.path), "the descriptor says neither `tiny` nor `example.path`: there is nothing to build")
        for path in paths:
            elsewhere = "/" in path and not Path(path).expanduser().exists()
            require(
                not elsewhere, f"example.path {path} is not on this machine, and checks download nothing: name a `tiny` model"
            )
        return paths
    folder = subject.make_folder("models") / "tiny"
    import_target(subject.record, f"the tiny model of {subject.label}", spec.tiny)(folder)
    require(folder.is_dir() and any(folder.iterdir()), f"{spec.tiny} has written nothing into the folder that it was given")
    return str(folder), str(folder)


def smallest_geometry(encoders: Encoders) -> VideoGeometry:
    """The smallest of some usual sizes that ``encoders`` accept, with more than one frame; else their default."""
    for height in (32, 48, 64, 96, 128):
        for frames in (5, 9, 17, 8, 16, 13):
            geometry = VideoGeometry(num_frames=frames, height=height, width=2 * height)
            try:
                encoders.check_geometry(geometry)
            except FvdError:
                continue
            return geometry
    return encoders.default_plan.geometry


def synthetic_video(geometry: VideoGeometry, number: int) -> Tensor:
    """[3, T, H, W]: a bright block that moves over a dark ground; another one for another number."""
    video = torch.full((3, geometry.num_frames, geometry.height, geometry.width), 0.15)
    side = geometry.height // 2
    for frame in range(geometry.num_frames):
        left = (frame * geometry.width // (2 * geometry.num_frames) + number * side) % (geometry.width - side)
        video[number % 3, frame, side // 2 : side // 2 + side, left : left + side] = 0.9
    return video


def select(raw: RawBatch, positions: Sequence[int]) -> RawBatch:
    """Some samples of a raw batch."""
    index = list(positions)
    tensors = {name: tensor[index] for name, tensor in raw.tensors.items()}
    return RawBatch(tensors, raw.dropped[index], [raw.info[position] for position in index])


def _two_captions(raw: RawBatch) -> list[int]:
    """Positions of two samples with different captions, neither empty; the first two where there are none."""
    seen: dict[object, int] = {}
    for position, info in enumerate(raw.info):
        if info.get("caption"):
            seen.setdefault(info["caption"], position)
    return [*seen.values()][:2] if len(seen) > 1 else [0, 1]


def builds(subject: Subject) -> None:
    """B101."""
    bench = subject.family
    for handle, trainable in ((bench.student, True), (bench.teacher, False)):
        what = f"load_role of a {'trained' if trainable else 'frozen'} role"
        require(isinstance(handle, RoleHandle), f"{what} must return a fvd.RoleHandle")
        role = "student" if trainable else "teacher"
        require(
            handle.name == role and handle.trainable is trainable, f"{what} must say the name and `trainable` that it was given"
        )
        require(bool(handle.modules), f"{what} has no modules")
        for name, module in handle.modules.items():
            wrong = [key for key, parameter in module.named_parameters() if parameter.requires_grad is not trainable]
            wanted = f"requires_grad must be {trainable} (RoleHandle.apply_trainable does it)"
            require(not wrong, f"{what}: {wanted}, and is not for {name}.{wrong[0] if wrong else ''}")
            training = [key for key, part in module.named_modules() if part.training]
            require(not training, f"{what}: modules must be in eval mode, {name} is not")
            devices = {parameter.device.type for parameter in module.parameters()}
            require(devices <= {"cpu"}, f"{what}: {name} is on {', '.join(sorted(devices))}, and the context says cpu")
            dtypes = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
            require(not trainable or dtypes <= {torch.float32}, f"{what}: master weights must be float32, {name} has {dtypes}")
        if trainable:
            require(bool(handle.trainable_parameters()), f"{what} has no parameters to train")
    require(isinstance(bench.adapter, Adapter), "build_adapter must return a fvd.Adapter")
