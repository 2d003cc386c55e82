"""The toy families as families: roles from words and folders, data, text, pictures; and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fvd
from fvd.testing import assert_light_module
from fvd.testing.toy.config import ToyConfig
from fvd.testing.toy.data import CHUNK_SIZE, CHUNKS, open_points
from fvd.testing.toy.text import embed, mode_weights, modes_of
from fvd.testing.toy.workbench import toy_batch, toy_family

BOTH = pytest.mark.parametrize("predicts", ["velocity", "noise"])
ALL = list(range(8))


def role(path: str, *, trainable: bool = False) -> fvd.RoleConfig:
    return fvd.RoleConfig(path=path, trainable=trainable)


def weights_of(handle: fvd.RoleHandle) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in handle.modules["transformer"].parameters()])


@pytest.mark.parametrize("module", ["fvd.testing.toy.plugin", "fvd.testing.toy_noise.plugin"])
def test_the_light_modules_are_light(module):
    assert_light_module(module)


# --- roles ---
def test_random_weights_follow_from_the_seed_alone():
    family = toy_family()
    state = torch.random.get_rng_state()
    student, critic = (family.load_role(name, role("random", trainable=True)) for name in ("student", "critic"))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(weights_of(student), weights_of(critic))
    assert torch.equal(weights_of(student), weights_of(family.load_role("x", role("random:0"))))
    assert not torch.equal(weights_of(student), weights_of(family.load_role("x", role("random:1"))))
    assert 3000 < weights_of(student).numel() < 20_000
    assert student.trainable
    assert not family.load_role("x", role("random")).trainable_parameters()


@BOTH
def test_an_exported_network_is_the_same_function(predicts, tmp_path):
    family = toy_family(predicts)
    trained = family.load_role("student", role("random:7", trainable=True))
    family.export(trained, tmp_path, "toy")
    loaded = family.load_role("teacher", role(str(tmp_path)))
    adapter = family.build_adapter(fvd.RoleManager([trained, loaded]))
    x_t, t, cond = torch.randn(3, 2, 1, 1, 1), torch.tensor([10.0, 500.0, 990.0]), adapter.encode_prompts(["mode 1"] * 3)
    with torch.no_grad():
        assert torch.equal(adapter.predict(trained, x_t, t, cond), adapter.predict(loaded, x_t, t, cond))


def damaged(folder: Path) -> Path:
    family = toy_family()
    folder.mkdir()
    family.export(family.load_role("x", role("random")), folder, "toy")
    (folder / "weights.pt").write_bytes(b"no weights")
    return folder


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("models/x", "no folder of an exported toy"),
        ("random:x", "no folder of an exported toy"),
        ("randomly", "no folder"),
        ("analytics", "no folder"),
    ],
)
def test_a_path_that_means_nothing(path, message):
    with pytest.raises(fvd.ModelError, match=f"role 'student': .*{message}") as caught:
        toy_family().load_role("student", role(path))
    assert "random, random:SEED, analytic" in caught.value.cure


def test_the_exact_denoiser_cannot_be_trained_or_exported(tmp_path):
    family = toy_family()
    with pytest.raises(fvd.ModelError, match="role 'student': path analytic is the exact denoiser and has no weights"):
        family.load_role("student", role("analytic", trainable=True))
    teacher = family.load_role("teacher", role("analytic"))
    with pytest.raises(fvd.ModelError, match="no weights to export"):
        family.export(teacher, tmp_path, "toy")
    with pytest.raises(fvd.FvdError, match="does not export to 'diffusers'"):
        family.export(teacher, tmp_path, "diffusers")
    assert not list(tmp_path.iterdir())
    assert not family.shard_units(teacher)


def test_folders_that_do_not_fit(tmp_path):
    with pytest.raises(fvd.ModelError, match="is damaged"):
        toy_family().load_role("student", role(str(damaged(tmp_path / "damaged"))))
    (tmp_path / "eight").mkdir()
    eight = toy_family()
    eight.export(eight.load_role("x", role("random")), tmp_path / "eight", "toy")
    with pytest.raises(fvd.ModelError, match="family toy with 8 modes in 2 dimensions, and this run is of toy with 5"):
        toy_family(config=ToyConfig(modes=5)).load_role("student", role(str(tmp_path / "eight")))
    with pytest.raises(fvd.ModelError, match=r"of family toy with 8 modes .* of toy_noise"):
        toy_family("noise").load_role("student", role(str(tmp_path / "eight")))


def test_there_is_nothing_to_prepare():
    with pytest.raises(fvd.FvdError, match="makes its data itself"):
        toy_family().build_encoders()


# --- text and data ---
@pytest.mark.parametrize(("caption", "modes"), [("mode 3", [3]), ("mode 4 mode 1", [1, 4]), ("", ALL), (" ", ALL)])
def test_captions_name_modes(caption, modes):
    assert modes_of(caption, 8) == modes
    embedding = embed([caption], 8)
    assert float(embedding.sum()) == pytest.approx(1)
    assert embedding[0].nonzero().flatten().tolist() == modes


def test_any_other_text_is_one_mode_and_a_mode_too_far_is_refused():
    assert len(modes_of("a red square", 8)) == 1
    assert modes_of("a red square", 8) == modes_of("a red square ", 8)
    assert len({modes_of(f"prompt {number}", 8)[0] for number in range(100)}) == 8
    with pytest.raises(fvd.FvdError, match="names mode 8") as caught:
        embed(["mode 8"], 8)
    assert "0 to 7" in caught.value.cure


def test_an_embedding_of_zeros_says_nothing():
    assert torch.equal(mode_weights(torch.zeros(2, 4)), torch.full((2, 4), 0.25))
    assert torch.equal(mode_weights(torch.tensor([[3.0, 1.0, -2.0, 0.0]])), torch.tensor([[0.75, 0.25, 0.0, 0.0]]))


def test_points_lie_where_their_captions_say():
    family = toy_family()
    points = open_points([], family.data_spec(), needs_latents=True)
    assert points.chunk_sizes == [CHUNK_SIZE] * CHUNKS
    named = set()
    for sample in points.read_chunk(5):
        nearest = int((family.mixture.means - sample.tensors["vae_latent"].flatten()).norm(dim=1).argmin())
        modes = modes_of(str(sample.info["caption"]), 8)
        assert nearest in modes
        assert sample.tensors["text_embedding"].nonzero().flatten().tolist() == modes
        named.add(len(modes))
    assert named == {1, 2, 8}
    again = open_points([], family.data_spec(), needs_latents=True).read_chunk(5)
    assert all(
        torch.equal(a.tensors["vae_latent"], b.tensors["vae_latent"]) for a, b in zip(points.read_chunk(5), again, strict=True)
    )
    assert not torch.equal(points.read_chunk(4)[0].tensors["vae_latent"], again[0].tensors["vae_latent"])


def test_a_batch_of_the_workbench_goes_round():
    family = toy_family()
    last = CHUNKS * CHUNK_SIZE
    batch = toy_batch(family, 200, first=last - 100)
    assert [batch.info[0]["id"], batch.info[99]["id"], batch.info[100]["id"]] == [
        f"point-{last - 100}",
        f"point-{last - 1}",
        "point-0",
    ]


# --- adapter ---
@BOTH
def test_a_dropped_caption_is_the_empty_one(predicts):
    family = toy_family(predicts)
    adapter = family.build_adapter(fvd.RoleManager([]))
    raw = toy_batch(family, 4)
    raw.dropped = torch.tensor([True, False, True, False])
    cond = adapter.prepare_batch(raw, latents_source="data").cond
    assert torch.equal(cond[raw.dropped], adapter.encode_prompts(["", ""]))
    assert torch.equal(cond[~raw.dropped], raw.tensors["text_embedding"][~raw.dropped])


@BOTH
def test_unconditional_only_when_asked_for(predicts):
    family = toy_family(predicts, config=ToyConfig(negative_prompt="mode 2"))
    adapter = family.build_adapter(fvd.RoleManager([]))
    zeros = adapter.prepare_batch(toy_batch(family, 3), latents_source="zeros")
    assert zeros.uncond is None
    assert torch.equal(zeros.latents, torch.zeros(3, 2, 1, 1, 1))
    with pytest.raises(fvd.FvdError, match="has not been encoded"):
        adapter.negative_conditioning(2)
    adapter.ensure_negative_conditioning()
    uncond = adapter.prepare_batch(toy_batch(family, 3), latents_source="data").uncond
    assert torch.equal(uncond, adapter.encode_prompts(["mode 2"] * 3))


def test_a_picture_shows_where_the_point_is():
    adapter = toy_family().build_adapter(fvd.RoleManager([]))
    points = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-1.5, -1.5]])
    video = adapter.decode(points.reshape(3, 2, 1, 1, 1))
    assert video.shape == (3, 3, 1, 32, 32)
    assert 0 <= float(video.min()) <= float(video.max()) <= 1
    for point, picture in zip(points, video[:, 0, 0], strict=True):
        row, column = divmod(int(picture.argmax()), 32)
        shown = torch.tensor([column / 31 * 6 - 3, 3 - row / 31 * 6])
        assert (shown - point).abs().max() < 0.15


@BOTH
def test_refusals_of_the_adapter(predicts):
    family = toy_family(predicts)
    student = family.load_role("student", role("random"))
    adapter = family.build_adapter(fvd.RoleManager([student]))
    with pytest.raises(fvd.FvdError, match="no scheduler for samplers of kind 'flow'"):
        adapter.scheduler("flow")
    with pytest.raises(fvd.FvdError, match="no attention 'vsa'"):
        adapter.predict(student, torch.zeros(1, 2, 1, 1, 1), torch.zeros(1), adapter.encode_prompts([""]), attn_kind="vsa")


def test_ddim_is_that_of_diffusers():
    """Against diffusers' scheduler, at its own timesteps, with a prediction that is not trivial."""
    diffusers = pytest.importorskip("diffusers")
    from fvd.testing.toy_noise.family import DdimScheduler, linear_schedule

    theirs = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    ours = DdimScheduler(linear_schedule(), 1.0)
    torch.testing.assert_close(linear_schedule().alphas_cumprod.float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-6)
    theirs.set_timesteps(10)
    ours.set_timesteps(10)
    ours.timesteps = theirs.timesteps.float()
    x_ours = x_theirs = torch.randn(4, 2, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    for t in theirs.timesteps:
        (x_ours,) = ours.step(torch.tanh(x_ours), t, x_ours)
        x_theirs = theirs.step(torch.tanh(x_theirs), t, x_theirs).prev_sample
    torch.testing.assert_close(x_ours, x_theirs, rtol=1e-3, atol=1e-3)


def test_the_solver_of_the_noise_family_is_shifted_as_the_adapter():
    adapter = toy_family("noise", config=ToyConfig(flow_shift=3.0)).build_adapter(fvd.RoleManager([]))
    scheduler = adapter.scheduler("ode")
    scheduler.set_timesteps(3)
    assert torch.equal(scheduler.timesteps, adapter.shift_and_clamp_timestep(torch.tensor([999.0, 666.0, 333.0])))


def test_the_euler_step_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    adapter = toy_family(config=ToyConfig(flow_shift=3.0)).build_adapter(fvd.RoleManager([]))
    ours = adapter.scheduler("ode")
    ours.set_timesteps(6)
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(sigmas=[1 - step / 6 for step in range(6)])
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-5, atol=1e-3)
    x_ours = x_theirs = torch.randn(4, 2, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    for t in theirs.timesteps:
        (x_ours,) = ours.step(torch.tanh(x_ours), t, x_ours)
        x_theirs = theirs.step(torch.tanh(x_theirs), t, x_theirs).prev_sample
    torch.testing.assert_close(x_ours, x_theirs, rtol=1e-4, atol=1e-5)
