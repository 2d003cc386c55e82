"""The one size of a run: the run file's, the data's, or a refusal."""

from __future__ import annotations

import pytest
from small_video import small_roles, small_run

from fvd.config.models import MethodConfig
from fvd.data.spec import DataSpec, FieldSpec
from fvd.data.trajectories import LATENTS
from fvd.errors import DataError
from fvd.video_size import check_size_early, resolve_latent_shape

SPEC = DataSpec(
    text_padding_length=4,
    fields=(
        FieldSpec(name="text", axes=("L", "D"), sizes={}, source="text", ragged="L"),
        FieldSpec(name="latent", axes=("C", "T", "H", "W"), sizes={"C": 16}, source="latents"),
    ),
)
DATA = {"latent": {"C": 16, "T": 3, "H": 8, "W": 6}, "text": {"D": 32}}
SIZE = {"num_frames": 9, "num_height": 64, "num_width": 48}


class Adapter:
    """8 x 8 pixels and 4 frames to a latent."""

    def latent_shape(self, geometry):
        return 16, (geometry.num_frames - 1) // 4 + 1, geometry.height // 8, geometry.width // 8


def resolve(shapes, source, **training):
    run = small_run(small_roles({"student": True}), MethodConfig(), training=training)
    return resolve_latent_shape(run, Adapter().latent_shape, shapes, SPEC, source)


@pytest.mark.parametrize("source", ["data", "zeros"])
def test_either_says_it(source):
    assert resolve(DATA, source) == (16, 3, 8, 6)
    assert resolve({"text": {"D": 32}}, source, **SIZE) == (16, 3, 8, 6)
    assert resolve(DATA, source, **SIZE) == (16, 3, 8, 6)
    assert resolve(DATA, source, num_height=640) == (16, 3, 8, 6)  # a size needs all three


@pytest.mark.parametrize("change", [{"num_frames": 13}, {"num_height": 128}, {"num_width": 64}])
def test_a_size_that_is_not_the_datas_is_refused_where_the_data_are_trained_on(change):
    with pytest.raises(DataError, match=r"latents are \[16, 3, 8, 6\], and the size in the run file makes \[16, ") as caught:
        resolve(DATA, "data", **SIZE | change)
    assert "num_frames" in caught.value.cure


def test_the_run_file_wins_where_only_the_size_matters():
    assert resolve(DATA, "zeros", num_frames=17, num_height=128, num_width=256) == (16, 5, 16, 32)


@pytest.mark.parametrize(("frames", "kept"), [(1, 1), (2, 2), (3, 3), (9, 3)])
def test_latent_frames_crop_both(frames, kept):
    assert resolve(DATA, "data", num_latent_t=frames) == (16, kept, 8, 6)
    assert resolve(DATA, "data", num_latent_t=frames, **SIZE) == (16, kept, 8, 6)
    assert resolve({}, "zeros", num_latent_t=frames, **SIZE) == (16, kept, 8, 6)


def test_a_crop_may_make_them_agree():
    assert resolve(DATA, "data", num_latent_t=2, **SIZE | {"num_frames": 81}) == (16, 2, 8, 6)


@pytest.mark.parametrize("source", ["data", "zeros"])
def test_nobody_says_it(source):
    with pytest.raises(DataError, match="nothing says how large") as caught:
        resolve({"text": {"D": 32}}, source)
    assert "training.num_height" in caught.value.cure


# --- trajectories ----------------------------------------------------------------------------------------------------
PAIRS = {LATENTS: {"S": 5, "C": 16, "T": 3, "H": 8, "W": 6}, "text": {"D": 32}}


def test_trajectories_say_it_where_there_are_no_latents():
    assert resolve(PAIRS, "zeros") == (16, 3, 8, 6)
    assert resolve(PAIRS, "zeros", **SIZE) == (16, 3, 8, 6)
    assert resolve(PAIRS, "zeros", num_latent_t=4) == (16, 3, 8, 6)


@pytest.mark.parametrize("change", [SIZE | {"num_frames": 13}, SIZE | {"num_width": 64}, {"num_latent_t": 2}])
def test_a_size_that_is_not_the_trajectories_is_refused(change):
    with pytest.raises(
        DataError, match=r"trajectories in the data have latents \[16, 3, 8, 6\], and this run has \[16, "
    ) as caught:
        resolve(PAIRS, "zeros", **change)
    assert "num_latent_t" in caught.value.cure


def test_latents_and_trajectories_of_two_sizes_are_refused():
    both = {**PAIRS, "latent": {"C": 16, "T": 3, "H": 8, "W": 8}}
    with pytest.raises(DataError, match="trajectories in the data"):
        resolve(both, "data")


# --- before weights --------------------------------------------------------------------------------------------------
class Unknowing:
    def latent_shape(self, geometry):
        return None


def check_early(family, shapes, **training):
    run = small_run(small_roles({"student": True}), MethodConfig(), training=training)
    check_size_early(run, family, shapes, SPEC, "zeros")


def test_early_where_the_family_knows():
    check_early(Adapter(), PAIRS, **SIZE)
    for family in (Adapter(), Unknowing()):
        check_early(family, PAIRS)
        with pytest.raises(DataError, match="nothing says how large"):
            check_early(family, {"text": {"D": 32}})
    wrong = SIZE | {"num_width": 64}
    check_early(Unknowing(), PAIRS, **wrong)
    with pytest.raises(DataError, match="trajectories in the data"):
        check_early(Adapter(), PAIRS, **wrong)
