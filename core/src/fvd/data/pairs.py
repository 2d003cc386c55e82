"""`fvd data pairs`: captions in, solutions of the teacher's probability-flow ODE out, as `fvd.data.trajectories` reads them.

The teacher is sampled with its family's own solver from noise that follows from seed and caption; of its way the points at the
timesteps that are asked for are stored, and the end. Rows are resumed and written as those of `fvd data prepare`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from fvd.adapters import Adapter, Conditioning
from fvd.data.captions import ClipSource, Listing, list_prompts
from fvd.data.clips import Verdict
from fvd.data.encoded import CheckedEncoders
from fvd.data.parquet_schema import TRAJECTORY_SCHEMA, pack_tensor
from fvd.data.prepare import FillRequest, fill, require_finite
from fvd.data.prepared import Settings
from fvd.data.spec import VideoGeometry
from fvd.data.trajectories import LATENTS, TIMESTEPS, TOLERANCE, nearest_index, nearest_point
from fvd.errors import DataError, FvdError
from fvd.families import Encoders, Family
from fvd.rng import derive_seed
from fvd.roles import RoleHandle
from fvd.samplers.guidance import GuidedModel
from fvd.samplers.sampling import CountsSteps, LoadedSampler, sample_latents

CAPTIONS_AT_ONCE = 32
"""Encoded one after another, before the text encoder makes room for the teacher."""
_DIGEST_VALUES = 1024
"""Of each weight, so many values tell one teacher from another: reading 14 billion would take minutes."""


@dataclass(frozen=True, kw_only=True)
class PairsRequest:
    """What the user asked for. source: captions, or with ``from_data`` a folder of prepared data whose captions are taken.
    keep: timesteps of the points to store, besides the end. guidance_scale: 1 = none."""

    source: Path
    from_data: bool
    out: Path
    family: str
    model: str
    geometry: VideoGeometry
    steps: int
    guidance_scale: float
    keep: tuple[float, ...]
    seed: int = 0
    overwrite: bool = False
    rows_per_file: int = 64

    def settings(self, digest: str) -> Settings:
        kept = ", ".join(f"{timestep:g}" for timestep in self.keep)
        return Settings(
            schema="trajectory",
            family=self.family,
            model=self.model,
            digest=digest,
            num_frames=self.geometry.num_frames,
            height=self.geometry.height,
            width=self.geometry.width,
            sampling=f"{self.steps} steps, guidance {self.guidance_scale:g}, timesteps {kept}, seed {self.seed}",
        )


def make_pairs(request: PairsRequest, family: Family, teacher: RoleHandle, adapter: Adapter, sampler: LoadedSampler) -> None:
    """Fill a folder. Raises FvdError for timesteps that the solver does not pass, and DataError where no caption is usable."""
    encoders = family.build_encoders()
    rows = PairRows(request, CheckedEncoders(encoders, request.family), adapter, teacher, sampler)
    digest = _digest(encoders, teacher, family)
    settings = request.settings(digest)
    wanted = FillRequest(
        source=request.source,
        out=request.out,
        settings=settings,
        digest=f"{digest} {settings.sampling} {request.geometry}",
        overwrite=request.overwrite,
        rows_per_file=request.rows_per_file,
    )
    fill(wanted, rows)


class PairRows:
    """Rows of `TRAJECTORY_SCHEMA`; a `fvd.data.prepare.RowMaker`."""

    schema = TRAJECTORY_SCHEMA
    doing, done, noun = "sampling", "sampled", "captions"

    def __init__(
        self,
        request: PairsRequest,
        encoders: CheckedEncoders,
        adapter: Adapter,
        teacher: RoleHandle,
        sampler: LoadedSampler,
    ) -> None:
        self._request = request
        self._encoders = encoders
        self._adapter = adapter
        self._teacher = teacher
        self._sampler = sampler
        self._shape = adapter.latent_shape(request.geometry)
        self._kept = points_to_keep(self._solver_timesteps(), request.keep)
        self._uncond: Conditioning | None = None
        self._upcoming: list[str] = []
        self._encoded: dict[str, tuple[Tensor, Conditioning]] = {}

    def listing(self) -> Listing:
        return captions_of_data(self._request.source) if self._request.from_data else list_prompts(self._request.source)

    def begin(self, missing: Sequence[Verdict]) -> None:
        self._upcoming = [verdict.caption for verdict in missing]
        if missing and self._request.guidance_scale != 1:
            self._adapter.ensure_negative_conditioning()
            self._uncond = self._adapter.negative_conditioning(1)

    def row(self, verdict: Verdict) -> dict[str, object]:
        if verdict.caption not in self._encoded:
            self._encode_next()
        embedding, cond = self._encoded.pop(verdict.caption)
        require_finite(embedding, "its text embedding holds NaN or infinite values")
        points = self._trajectory(verdict.caption, cond)
        require_finite(points, "the teacher makes NaN or infinite values of it")
        return {
            "id": verdict.row_id,
            **pack_tensor("text_embedding", embedding),
            **pack_tensor(LATENTS, points),
            **pack_tensor(TIMESTEPS, torch.tensor([*self._kept.values(), 0.0])),
            "file_name": verdict.clip.name,
            "caption": verdict.caption,
            "media_type": "text",
        }

    def _encode_next(self) -> None:
        captions, self._upcoming = self._upcoming[:CAPTIONS_AT_ONCE], self._upcoming[CAPTIONS_AT_ONCE:]
        for caption in captions:
            self._encoded[caption] = (self._encoders.embedding(caption), self._adapter.encode_prompts([caption]))
        self._adapter.release()

    def _trajectory(self, caption: str, cond: Conditioning) -> Tensor:
        """The kept points and the end, [S, C, T, H, W], float32, on the CPU."""
        model = RecordingModel(
            self._adapter, self._teacher, cond, self._uncond, self._request.guidance_scale, frozenset(self._kept)
        )
        x0 = sample_latents(
            model,
            sampler=self._sampler,
            shape=self._shape,
            steps=self._request.steps,
            timesteps=None,
            seeds=[derive_seed("pairs", self._request.seed, caption)],
        )
        return torch.cat([*model.points, x0]).float().cpu()

    def _solver_timesteps(self) -> list[float]:
        scheduler = self._adapter.scheduler(self._sampler.spec.scheduler)
        scheduler.set_timesteps(self._request.steps)
        if isinstance(scheduler, CountsSteps):
            scheduler.set_begin_index(0)
        return [float(timestep) for timestep in scheduler.timesteps]


@dataclass(frozen=True)
class RecordingModel(GuidedModel):
    """Keeps what it is shown at the calls ``kept``, counted from 0."""

    kept: frozenset[int] = frozenset()
    points: list[Tensor] = field(default_factory=list)
    calls: list[None] = field(default_factory=list)

    def predict(self, x_t: Tensor, t: Tensor) -> Tensor:
        if len(self.calls) in self.kept:
            self.points.append(x_t.clone())
        self.calls.append(None)
        return super().predict(x_t, t)


def points_to_keep(solver: Sequence[float], wanted: Sequence[float]) -> dict[int, float]:
    """Which of the solver's steps begin at the timesteps ``wanted``, in the solver's order: its number -> its own timestep.
    Raises FvdError, with what there is, for those that no step begins near to."""
    chosen = {timestep: nearest_point(solver, timestep) for timestep in wanted}
    missing = [timestep for timestep, index in chosen.items() if index is None]
    if missing:
        around = [solver[nearest_index(solver, timestep)] for timestep in missing]
        problems = [f"{timestep:g} (nearest: {there:g})" for timestep, there in zip(missing, around, strict=True)]
        raise FvdError(
            f"in {len(solver)} steps the teacher does not come within {TOLERANCE:g} of the timesteps {', '.join(problems)}",
            cure="Choose other --steps: a multiple of 4 passes 750, 500 and 250 before the flow shift. Timesteps are after it.",
        )
    return {index: solver[index] for index in sorted(index for index in chosen.values() if index is not None)}


def captions_of_data(folder: Path) -> Listing:
    """The captions in a folder of prepared data. Raises DataError where it has none."""
    files = sorted(folder.rglob("*.parquet"))
    clips = []
    for path in files:
        try:
            captions = pq.read_table(path, columns=["caption"])["caption"].to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: no captions can be read: {str(error).splitlines()[0]}") from error
        clips += [ClipSource(f"{path.name}:{row}", None, caption or None) for row, caption in enumerate(captions)]
    if not clips:
        raise DataError(
            f"no prepared data in {folder}", cure="Name a folder that `fvd data prepare` has filled, or use --captions."
        )
    return Listing(f"captions of prepared data, {len(files)} files", clips)


def _digest(encoders: Encoders, teacher: RoleHandle, family: Family) -> str:
    """Of everything that the rows depend on, besides what the command says."""
    config = family.context.config.model_dump_json(exclude={"components_path"})
    digest = hashlib.blake2b(f"{encoders.digest}\n{config}\n".encode(), digest_size=16)
    for module_name, module in teacher.modules.items():
        for name, tensor in module.state_dict().items():
            digest.update(f"{module_name}.{name} {list(tensor.shape)}\n".encode())
            values = tensor.detach().flatten()
            values = values[:: max(1, values.numel() // _DIGEST_VALUES)]
            digest.update(values.float().cpu().numpy().tobytes())
    return digest.hexdigest()
