"""Stored ODE solutions of a teacher: the format, FastVideo's labelling, and `fvd data pairs` with a teacher that is exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

import fvd
from fvd.data.loader import Loader
from fvd.data.pairs import PairsRequest, captions_of_data, make_pairs, points_to_keep
from fvd.data.parquet import TEXT_ONLY_SCHEMA, open_parquet
from fvd.data.parquet_footer import first_file, has_column
from fvd.data.parquet_schema import TRAJECTORY_SCHEMA, pack_tensor
from fvd.data.spec import DataSpec, FieldSpec, VideoGeometry
from fvd.data.trajectories import Trajectories, timesteps_of_points, with_trajectories
from fvd.errors import DataError, FvdError
from fvd.families import ClipPlan, Encoders
from fvd.flow import shift_sigma
from fvd.plugins import load_plugins
from fvd.rng import derive_seed
from fvd.samplers.sampling import load_sampler
from fvd.testing.toy.config import ToyConfig
from fvd.testing.toy.family import ToyFamily
from fvd.testing.toy.text import embed

SPEC = DataSpec(
    fields=(
        FieldSpec(name="vae_latent", axes=("C", "T", "H", "W"), sizes={"C": 2}, source="latents"),
        FieldSpec(name="text_embedding", axes=("L", "D"), sizes={"D": 8}, source="text", ragged="L"),
    ),
    text_padding_length=1,
)
SHAPE = (2, 1, 1, 1)
MEAN, STD = 1.5, 0.4
CPU = torch.device("cpu")


def flow_map(noise: np.ndarray, sigma: float) -> np.ndarray:
    """Where the probability-flow ODE of data N(MEAN, STD²) leads from ``noise`` at sigma 1: the marginals are Gaussian, and the
    ODE moves each quantile along (x(sigma) = (1 - sigma) m + z sqrt((1 - sigma)² s² + sigma²))."""
    return (1 - sigma) * MEAN + noise * math.sqrt(((1 - sigma) * STD) ** 2 + sigma**2)


def gaussian_velocity(x: np.ndarray, sigma: float) -> np.ndarray:
    """E[noise - x0 | x_t] for that data."""
    variance = ((1 - sigma) * STD) ** 2 + sigma**2
    return -MEAN + (sigma - (1 - sigma) * STD**2) / variance * (x - (1 - sigma) * MEAN)


def fastvideo_row(number: int, *, steps: int = 48, shift: float = 5.0) -> dict[str, object]:
    """A row as FastVideo makes one: latents are appended after the solver's step and timesteps before it, with a batch axis."""
    noise = np.random.default_rng(number).standard_normal((1, *SHAPE))
    sigmas = [shift_sigma(1 - step / steps, shift) for step in range(steps)] + [0.0]
    x, latents, timesteps = noise, [], []
    for here, after in pairwise(sigmas):
        x = x + (after - here) * gaussian_velocity(x, here)
        timesteps.append(1000 * here)
        latents.append(x)
    trajectory = np.stack(latents, axis=1).astype(np.float32)
    assert trajectory.shape == (1, steps, *SHAPE)
    text = np.ones((1, 8), np.float32)
    packed = {"text_embedding": text, "trajectory_latents": trajectory, "trajectory_timesteps": np.float32(timesteps)}
    row: dict[str, object] = {"id": f"video-{number}", "file_name": "", "caption": f"{number}", "media_type": "text"}
    for name, array in packed.items():
        row |= {f"{name}_bytes": array.tobytes(), f"{name}_shape": list(array.shape), f"{name}_dtype": str(array.dtype)}
    return row


def write(folder: Path, rows: Sequence[dict[str, object]], schema: pa.Schema = TRAJECTORY_SCHEMA) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), folder / "data_chunk_0.parquet")
    return folder


def read(folder: Path, count: int) -> fvd.RawBatch:
    spec = with_trajectories(SPEC)
    dataset = open_parquet([(folder, 1)], spec, needs_latents=False)
    return next(iter(Loader(dataset, spec, batch_size=count, seed=0, read_ahead=0, needs_latents=False)))


# --- reading ---
def test_the_schema_field_for_field() -> None:
    triplet = [("bytes", "binary"), ("shape", "list<item: int64>"), ("dtype", "string")]
    expected = [("id", "string")]
    for name in ("text_embedding", "trajectory_latents", "trajectory_timesteps"):
        expected += [(f"{name}_{part}", kind) for part, kind in triplet]
    expected += [("file_name", "string"), ("caption", "string"), ("media_type", "string")]
    assert [(field.name, str(field.type)) for field in TRAJECTORY_SCHEMA] == expected


def test_a_fastvideo_trajectory_is_read_at_the_timesteps_where_its_points_lie(tmp_path: Path) -> None:
    """Every point is on the exact solution at the timestep that we give it, up to the solver's error. Taken at the stored
    label, which is a step earlier, the points are four times as far off."""
    batch = read(write(tmp_path, [fastvideo_row(number) for number in range(3)]), 3)
    trajectories = Trajectories.of(batch)
    stored = batch.on_host["trajectory_timesteps"]
    assert trajectories.timesteps[0, -1] == 0
    assert stored[0, -1] > 0
    ours, labels = 0.0, 0.0
    for sample, info in enumerate(batch.info):
        noise = np.random.default_rng(int(str(info["caption"]))).standard_normal(SHAPE)
        for index in range(48):
            found = trajectories.points[sample, index].numpy()
            for error, t in (("ours", trajectories.timesteps[sample, index]), ("labels", stored[sample, index])):
                distance = float(np.abs(found - flow_map(noise, float(t) / 1000)).max())
                ours, labels = (max(ours, distance), labels) if error == "ours" else (ours, max(labels, distance))
    assert ours < 0.06
    assert labels > 4 * ours


def test_pairs_of_a_fastvideo_row(tmp_path: Path) -> None:
    trajectories = Trajectories.of(read(write(tmp_path, [fastvideo_row(0), fastvideo_row(1)]), 2))
    pairs = trajectories.pairs([937.5, 1000], device=CPU)
    # 937.5 is passed after 12 of 48 steps; of 1000 the noise is not stored, and the first point is within the tolerance.
    torch.testing.assert_close(pairs.t, torch.tensor([937.5, 1000 * shift_sigma(47 / 48, 5.0)]))
    assert torch.equal(pairs.x_t[0], trajectories.points[0, 11])
    assert torch.equal(pairs.x_t[1], trajectories.points[1, 0])
    assert torch.equal(pairs.x0, trajectories.points[:, 47])


def test_timesteps_that_end_in_0_are_those_of_the_points() -> None:
    both = torch.tensor([[1000.0, 500.0, 0.0], [1000.0, 600.0, 200.0]])
    assert timesteps_of_points(both).tolist() == [[1000, 500, 0], [600, 200, 0]]


def rows_with(timesteps: Tensor, points: Tensor) -> list[dict[str, object]]:
    text = pack_tensor("text_embedding", torch.ones(1, 8))
    packed = pack_tensor("trajectory_latents", points) | pack_tensor("trajectory_timesteps", timesteps)
    return [{"id": "a", "file_name": "", "caption": "x", "media_type": "text", **text, **packed}]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    points = torch.randn(3, *SHAPE).to(dtype)
    pairs = Trajectories.of(read(write(tmp_path, rows_with(torch.tensor([999, 500, 0]), points)), 1)).pairs([500], device=CPU)
    assert pairs.x_t.dtype == pairs.t.dtype == pairs.x0.dtype == torch.float32
    assert torch.equal(pairs.x_t[0], points[1].float())
    assert pairs.t.tolist() == [500]


def test_a_rung_that_is_not_stored_says_which_are(tmp_path: Path) -> None:
    trajectories = Trajectories.of(
        read(write(tmp_path, rows_with(torch.tensor([1000.0, 500.0, 0.0]), torch.randn(3, *SHAPE))), 1)
    )
    with pytest.raises(DataError, match=r"clip 'a' is within 5 of timestep 750; it has 1000, 500") as caught:
        trajectories.pairs([750], device=CPU)
    assert "fvd data pairs" in caught.value.cure
    trajectories.require([1000, 500])
    with pytest.raises(DataError, match="of timestep 750, 250; it has 1000, 500"):
        trajectories.require([1000, 750, 500, 250])
    assert trajectories.pairs([504], device=CPU).t.tolist() == [500]
    with pytest.raises(DataError):
        trajectories.pairs([506], device=CPU)
    with pytest.raises(DataError):
        trajectories.pairs([3], device=CPU)  # the end is no rung


@pytest.mark.parametrize(
    ("timesteps", "points", "complaint"),
    [
        (torch.tensor([500.0, 1000.0, 0.0]), torch.randn(3, *SHAPE), "do not descend: 500, 1000, 0"),
        (torch.tensor([1000.0, 0.0]), torch.randn(3, *SHAPE), "3 points and 2 timesteps"),
        (torch.tensor([1000.0, 500.0, 0.0]), torch.full((3, *SHAPE), math.nan), "trajectory_latents: 6 of 6 values are NaN"),
        (torch.tensor([1000.0, 500.0, 0.0]), torch.randn(3, 3, 1, 1, 1), r"trajectory_latents has shape .* with C = 2"),
        (torch.tensor([1000.0, 500.0, 0.0]), torch.randn(2, 3, *SHAPE), r"expected 5 axes \[S, C, T, H, W\]"),
    ],
)
def test_trajectories_that_cannot_be_used(tmp_path: Path, timesteps: Tensor, points: Tensor, complaint: str) -> None:
    folder = write(tmp_path, rows_with(timesteps, points))
    with pytest.raises(DataError, match=complaint):
        Trajectories.of(read(folder, 1))


def test_data_without_trajectories_say_how_to_make_them(tmp_path: Path) -> None:
    rows = [{"id": "a", **pack_tensor("text_embedding", torch.ones(1, 8)), "caption": "x"}]
    with pytest.raises(DataError, match="no column trajectory_latents_bytes") as caught:
        read(write(tmp_path, rows, TEXT_ONLY_SCHEMA), 1)
    assert "fvd data pairs" in caught.value.cure


def test_nothing_is_read_of_them_where_no_method_asks(tmp_path: Path) -> None:
    dataset = open_parquet([(write(tmp_path, [fastvideo_row(0)]), 1)], SPEC, needs_latents=False)
    assert set(dataset.read_chunk(0)[0].tensors) == {"text_embedding"}


def test_they_stay_on_the_cpu(tmp_path: Path) -> None:
    batch = read(write(tmp_path, [fastvideo_row(0)]), 1).to(torch.device("meta"))
    assert batch.tensors["text_embedding"].device.type == "meta"
    assert {tensor.device.type for tensor in batch.on_host.values()} == {"cpu"}
    assert Trajectories.of(batch).pairs([625], device=torch.device("meta")).x_t.device.type == "meta"


def test_the_columns_of_a_file_are_told_without_pyarrow(tmp_path: Path) -> None:
    with_them = write(tmp_path / "a", [fastvideo_row(0)])
    rows = [{"id": "a", **pack_tensor("text_embedding", torch.ones(1, 8)), "caption": "x"}]
    without = write(tmp_path / "b", rows, TEXT_ONLY_SCHEMA)
    (tmp_path / "c").mkdir()
    (tmp_path / "c/x.parquet").write_bytes(b"PAR1 nonsense, and no parquet")
    files = [first_file(folder) for folder in (with_them, without, tmp_path / "c")]
    assert [has_column(file, "trajectory_latents_bytes") for file in files if file] == [True, False, None]
    assert first_file(tmp_path / "nothing") is None


# --- making ---
class ModeEncoders(Encoders):
    """The toy's text as one token."""

    digest = "modes"
    default_plan = ClipPlan(fps=1.0, geometry=VideoGeometry(num_frames=1, height=1, width=1))

    def check_geometry(self, geometry: VideoGeometry) -> None: ...

    def encode_video(self, video: Tensor) -> Tensor:
        raise AssertionError("pairs need no video")

    def encode_text(self, captions: Sequence[str]) -> list[Tensor]:
        return [embedding[None] for embedding in embed(captions, 8)]


class PairedToy(ToyFamily):
    """The toy, with encoders."""

    def build_encoders(self) -> Encoders:
        return ModeEncoders()


CAPTIONS = ["mode 1", "mode 2 mode 5", "mode 7", "mode 0"]


class Bench:
    def __init__(self, tmp_path: Path, *, flow_shift: float = 3.0) -> None:
        context = fvd.FamilyContext(config=ToyConfig(flow_shift=flow_shift), components_path="", device=CPU)
        self.family = PairedToy(context)
        self.teacher = self.family.load_role("teacher", fvd.RoleConfig(path="analytic", trainable=False))
        self.adapter = self.family.build_adapter(fvd.RoleManager([self.teacher]))
        self.out = tmp_path / "pairs"
        self.captions = tmp_path / "captions.txt"
        self.captions.write_text("\n".join(CAPTIONS))

    def make(self, **changes: object) -> None:
        request = {
            "source": self.captions,
            "from_data": False,
            "out": self.out,
            "family": "toy",
            "model": "analytic",
            "geometry": VideoGeometry(num_frames=1, height=1, width=1),
            "steps": 40,
            "guidance_scale": 1.0,
            "keep": (1000.0, 900.0, 500.0),
            "rows_per_file": 2,
        } | changes
        sampler = load_sampler(load_plugins(only=()), "ode")
        make_pairs(PairsRequest(**request), self.family, self.teacher, self.adapter, sampler)

    def read(self) -> dict[str, dict[str, Tensor]]:
        """By caption."""
        batch = read(self.out, len(CAPTIONS))
        trajectories = Trajectories.of(batch)
        parts = zip(batch.info, trajectories.points, trajectories.timesteps, batch.tensors["text_embedding"], strict=True)
        return {str(info["caption"]): {"points": p, "timesteps": t, "text": text} for info, p, t, text in parts}

    def integrate(self, x: Tensor, t: float, caption: str, steps: int = 400) -> Tensor:
        """The teacher's ODE from x_t to x0 by the midpoint rule: independent of the samplers."""
        cond, x = self.adapter.encode_prompts([caption]), x[None].clone()
        sigmas = torch.linspace(t / 1000, 0, steps + 1, dtype=torch.float64).tolist()
        for here, after in pairwise(sigmas):
            velocity = self.adapter.predict(self.teacher, x, torch.tensor([1000 * here]), cond)
            middle = torch.tensor([500 * (here + after)])
            x = x + (after - here) * self.adapter.predict(self.teacher, x + (after - here) / 2 * velocity, middle, cond)
        return x[0]


def test_the_points_are_the_seeded_noise_and_the_way_to_x0(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.make(steps=400)
    rows = bench.read()
    assert set(rows) == set(CAPTIONS)
    for caption, row in rows.items():
        assert row["timesteps"].tolist() == pytest.approx([1000, 900, 500, 0], abs=1e-3)
        generator = torch.Generator().manual_seed(derive_seed("pairs", 0, caption))
        assert torch.equal(row["points"][0], torch.randn(SHAPE, generator=generator))
        assert torch.equal(row["text"], embed([caption], 8))
        for point, t in zip(row["points"], row["timesteps"].tolist(), strict=True):
            torch.testing.assert_close(bench.integrate(point, t, caption), row["points"][-1], atol=0.02, rtol=0)


def test_the_end_converges_to_the_exact_flow_map_with_the_solvers_order(tmp_path: Path) -> None:
    """Euler: twice the steps, half the error."""
    errors = []
    for number, steps in enumerate((100, 200, 400)):
        bench = Bench(tmp_path)
        bench.out = tmp_path / str(number)
        bench.make(steps=steps, keep=(1000.0,))
        rows = bench.read().items()
        ends = [(row["points"][-1] - bench.integrate(row["points"][0], 1000, name)).abs().max() for name, row in rows]
        errors.append(float(max(ends)))
    assert errors[2] < 0.02
    assert 1.6 < errors[0] / errors[1] < 2.5
    assert 1.6 < errors[1] / errors[2] < 2.5


def test_the_guidance_is_the_samplers(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.make(guidance_scale=1.0)
    plain = bench.read()["mode 1"]["points"]
    bench.make(guidance_scale=4.0, overwrite=True)
    guided = bench.read()["mode 1"]["points"]
    assert torch.equal(plain[0], guided[0])  # the noise is the caption's
    assert (plain[-1] - guided[-1]).abs().max() > 1e-3


def test_an_interrupted_making_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, halves = Bench(tmp_path), Bench(tmp_path)
    whole.make()
    expected = whole.read()
    halves.out = tmp_path / "halves"
    predict, left = type(halves.adapter).predict, [40 * 3 + 7]

    def interrupted(self: object, *args: object, **kwargs: object) -> Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return predict(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(type(halves.adapter), "predict", interrupted)
        with pytest.raises(KeyboardInterrupt):
            halves.make()
        with pytest.raises(DataError, match="is not complete"):
            halves.read()
        left[0] = 40  # one row's worth
        halves.make()
        assert left[0] == 0
    found = halves.read()
    for caption, row in expected.items():
        for name, tensor in row.items():
            assert torch.equal(found[caption][name], tensor)


def test_what_changes_the_rows_is_another_folder(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.make()
    for changes in ({"steps": 80}, {"guidance_scale": 2.0}, {"seed": 1}, {"keep": (1000.0,)}):
        with pytest.raises(DataError, match="sampling: 40 steps, guidance 1, timesteps 1000, 900, 500, seed 0 there"):
            bench.make(**changes)
    other = Bench(tmp_path, flow_shift=4.0)
    with pytest.raises(DataError, match="--model, --set"):
        other.make()


def test_timesteps_that_the_solver_does_not_pass_are_said_before_anything_is_made(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with pytest.raises(FvdError, match=r"in 40 steps .* timesteps 906 \(nearest: 911.765\)"):
        bench.make(keep=(1000.0, 906.0))
    assert not bench.out.exists()


def test_points_to_keep() -> None:
    assert points_to_keep([1000.0, 752.0, 500.0, 250.0], [250, 1000, 750]) == {0: 1000.0, 1: 752.0, 3: 250.0}


def test_captions_of_prepared_data(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.make()
    assert sorted(str(clip.caption) for clip in captions_of_data(bench.out).clips) == sorted(CAPTIONS)
    again = Bench(tmp_path)
    again.out = tmp_path / "again"
    again.make(source=bench.out, from_data=True)
    found, expected = again.read(), bench.read()
    assert all(torch.equal(found[caption]["points"], row["points"]) for caption, row in expected.items())
    with pytest.raises(DataError, match="no prepared data"):
        captions_of_data(tmp_path / "nothing")
