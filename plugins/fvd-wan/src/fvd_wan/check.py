"""What `fvd check` can say about a run file with Wan roles, without torch: from folders and their JSON files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fvd.errors import ModelError, Problem
from fvd.model_folder import local_folder
from fvd_wan.folders import ComponentsFolder, ModelFolder, read_components, read_model

if TYPE_CHECKING:
    from fvd.config.check import CheckContext

PIXEL_MULTIPLE = 16
FRAME_MULTIPLE = 4


def check_run_file(ctx: CheckContext) -> list[Problem]:
    """Problems with the paths of Wan roles, with how they fit together, and with the size of the videos."""
    from fvd_wan.config import WanConfig  # pydantic: only here, where a run file has been parsed

    if not isinstance(ctx.run.pipeline_config, WanConfig):  # another family, of whatever name
        return []
    named = ctx.run.roles
    roles = [role for role in named if named[role].path and ctx.run.role_family(role) == ctx.run.recipe.family]
    return [*_check_models(ctx, roles), *_check_size(ctx)]


def _check_models(ctx: CheckContext, roles: list[str]) -> list[Problem]:
    problems: list[Problem] = []
    models: dict[str, ModelFolder] = {}
    for role in roles:
        try:
            folder = local_folder(ctx.run.roles[role].path)
            if folder is None:
                problems.append(_hub_warning(ctx, f"roles.{role}.path", ctx.run.roles[role].path))
            else:
                models[role] = read_model(folder)
        except ModelError as error:
            problems.append(ctx.problem(f"roles.{role}.path", error.message, cure=error.cure))
    components, found = _check_components(ctx, roles)
    return [*problems, *found, *_check_agreement(ctx, models, components)]


def _check_components(ctx: CheckContext, roles: list[str]) -> tuple[ComponentsFolder | None, list[Problem]]:
    given = ctx.run.pipeline_config.components_path
    location = given or ctx.run.roles[roles[0]].path
    key = "pipeline_config.components_path" if given else f"roles.{roles[0]}.path"
    try:
        folder = local_folder(location)
    except ModelError as error:
        return None, [ctx.problem(key, error.message, cure=error.cure)] if given else []
    if folder is None:
        return None, [_hub_warning(ctx, key, location)] if given else []
    try:
        if not given:
            read_model(folder)
    except ModelError:
        return None, []  # said of the role already
    try:
        return read_components(folder), []
    except ModelError as error:
        return None, [ctx.problem(key, error.message, cure=error.cure)]


def _check_agreement(ctx: CheckContext, models: dict[str, ModelFolder], components: ComponentsFolder | None) -> list[Problem]:
    problems = []
    expected: tuple[str, int, int] | None = None
    if components is not None:
        expected = (f"the VAE and text encoder in {components.path}", components.latent_channels, components.text_dim)
    for role, model in models.items():
        for transformer in model.transformers.values():
            found = (transformer.in_channels, transformer.text_dim)
            if expected is None:
                expected = (f"role {role!r}", *found)
            elif found != expected[1:]:
                message = (
                    f"{transformer.path} has {found[0]} latent channels and text of width {found[1]}, but {expected[0]} has "
                    f"{expected[1]} and {expected[2]}"
                )
                problems.append(
                    ctx.problem(f"roles.{role}.path", message, cure="All roles of a run share one VAE and text encoder.")
                )
        if len(model.transformers) > 1 and _boundary_ratio(ctx) is None and model.boundary_ratio is None:
            problems.append(ctx.problem(f"roles.{role}.path", no_boundary_message(role), cure=NO_BOUNDARY_CURE))
    return problems


def _boundary_ratio(ctx: CheckContext) -> float | None:
    from fvd_wan.config import WanConfig

    return ctx.run.pipeline_config.boundary_ratio if isinstance(ctx.run.pipeline_config, WanConfig) else None


NO_BOUNDARY_CURE = "Set `pipeline_config.boundary_ratio` (0.875 for Wan 2.2 T2V-A14B)."


def no_boundary_message(role: str) -> str:
    return f"role {role!r} has two transformers, and its model_index.json does not say where one hands over to the other"


def _check_size(ctx: CheckContext) -> list[Problem]:
    training = ctx.run.training
    problems = []
    for key, value in (("num_height", training.num_height), ("num_width", training.num_width)):
        if value is not None and value % PIXEL_MULTIPLE:
            lower = max(value // PIXEL_MULTIPLE, 1) * PIXEL_MULTIPLE
            problems.append(
                ctx.problem(
                    f"training.{key}",
                    f"{value} is not a multiple of {PIXEL_MULTIPLE}",
                    cure=f"Use {lower} or {lower + PIXEL_MULTIPLE}.",
                )
            )
    frames = training.num_frames
    if frames is not None and (frames - 1) % FRAME_MULTIPLE:
        lower = (frames - 1) // FRAME_MULTIPLE * FRAME_MULTIPLE + 1
        message = f"{frames} is not 4k + 1: Wan's VAE codes one frame, and then four at a time"
        problems.append(ctx.problem("training.num_frames", message, cure=f"Use {lower} or {lower + FRAME_MULTIPLE}."))
    return problems


def _hub_warning(ctx: CheckContext, key: str, location: str) -> Problem:
    message = f"there is no folder {location}; it is taken as a hub id, and looked for there when the run starts"
    return ctx.problem(key, message, severity="warning")
