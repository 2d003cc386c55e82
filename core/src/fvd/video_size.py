"""The one size of the videos of a run: what the run file says, or else the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fvd.adapters import LatentsSource
from fvd.config.models import RunConfig
from fvd.data import trajectories
from fvd.data.spec import DataSpec, VideoGeometry
from fvd.errors import DataError
from fvd.families import Family

LatentShape = tuple[int, int, int, int]
DataShapes = Mapping[str, Mapping[str, int]]
"""`fvd.data.loader.Loader.shapes`."""


def video_geometry(config: RunConfig) -> VideoGeometry | None:
    training = config.training
    if training.num_frames and training.num_height and training.num_width:
        return VideoGeometry(num_frames=training.num_frames, height=training.num_height, width=training.num_width)
    return None


def check_size_early(
    config: RunConfig, family: Family, shapes: DataShapes, spec: DataSpec, latents_source: LatentsSource
) -> None:
    """What `resolve_latent_shape` raises, before there is an adapter: where the family can tell without its weights."""
    geometry = video_geometry(config)
    known = None if geometry is None else family.latent_shape(geometry)
    if geometry is None or known is not None:
        resolve_latent_shape(config, lambda _: known, shapes, spec, latents_source)


def resolve_latent_shape(
    config: RunConfig,
    latent_shape_of: Callable[[VideoGeometry], LatentShape | None],
    shapes: DataShapes,
    spec: DataSpec,
    latents_source: LatentsSource,
) -> LatentShape:
    """The one (C, T, H, W) that a run trains and samples at: the run file's size, or else that of the data's latents, or
    else of their trajectories.

    Raises DataError where the run file says another size than latents of the data that are trained on, or than trajectories
    (which are not cropped), or where nothing says one.
    """
    geometry, crop = video_geometry(config), config.training.num_latent_t
    from_file = _cropped(latent_shape_of(geometry), crop) if geometry else None
    from_data = _cropped(_shape_of_latents(shapes, spec), crop)
    of_points = _shape_of_points(shapes, spec)
    if latents_source == "data" and from_file and from_data and from_file != from_data:
        raise DataError(
            f"the data's latents are {list(from_data)}, and the size in the run file makes {list(from_file)} (C, T, H, W)",
            cure="Correct training.num_frames, num_height, num_width, num_latent_t, leave them out, or prepare the data anew.",
        )
    shape = from_file or from_data or _cropped(of_points, crop)
    if shape is None:
        raise DataError(
            "nothing says how large the videos are: the data hold text only",
            cure="Set training.num_frames, training.num_height and training.num_width.",
        )
    if of_points and of_points != shape:
        raise DataError(
            f"the trajectories in the data have latents {list(of_points)}, and this run has {list(shape)} (C, T, H, W)",
            cure="Correct training.num_frames, num_height, num_width, num_latent_t, leave them out, or make the pairs at this "
            "size.",
        )
    return shape


def _shape_of_latents(shapes: DataShapes, spec: DataSpec) -> LatentShape | None:
    for field in spec.fields:
        if field.source == "latents" and field.name in shapes:
            return _shape(shapes[field.name], field.axes)
    return None


def _shape_of_points(shapes: DataShapes, spec: DataSpec) -> LatentShape | None:
    """Of the points of trajectories, where these were asked for."""
    axes = next((field.axes for field in spec.fields if field.source == "latents"), None)
    return _shape(shapes[trajectories.LATENTS], axes) if axes and trajectories.LATENTS in shapes else None


def _shape(sizes: Mapping[str, int], axes: tuple[str, ...]) -> LatentShape:
    channels, frames, height, width = (sizes[axis] for axis in axes)
    return channels, frames, height, width


def _cropped(shape: LatentShape | None, frames: int | None) -> LatentShape | None:
    return shape and (shape[0], min(shape[1], frames or shape[1]), shape[2], shape[3])
