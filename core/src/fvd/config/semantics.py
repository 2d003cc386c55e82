"""What can be said of a parsed run file without torch: roles, capabilities, samplers, paths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fvd.config.check import CheckContext
from fvd.config.optimizers import check_optimization
from fvd.config.schedules import check_schedules
from fvd.config.validation import check_validation
from fvd.errors import PluginError, Problem, Severity, did_you_mean
from fvd.plugins import Plugins
from fvd.plugins.fit import missing_primitives
from fvd.specs import SAMPLING_PRIMITIVES, DatasetKindSpec, MethodSpec, SamplerSpec

PARQUET = "parquet"
"""Core's dataset kind."""
PREPARE_DATA = "Make it with `fvd data prepare CLIPS --family FAMILY --model MODEL --out FOLDER`."


def check_run(ctx: CheckContext, plugins: Plugins) -> list[Problem]:
    """Every finding of core about ``ctx.run``."""
    return [
        *_roles(ctx),
        *check_optimization(ctx),
        *check_schedules(ctx),
        *_latent_space(ctx),
        *_primitives(ctx),
        *_sampler(ctx, plugins),
        *_trackers(ctx, plugins),
        *_validator(ctx, plugins),
        *_output(ctx),
        *_size(ctx),
        *_data(ctx, plugins),
        *check_validation(ctx),
        *_ladder(ctx),
        *_held_out(ctx, plugins),
    ]


def _roles(ctx: CheckContext) -> list[Problem]:
    problems = missing_roles(ctx.method, list(ctx.run.roles), lambda key: ctx.locate(".".join(key)))
    for name, role in ctx.run.roles.items():
        needs = ctx.method.roles.get(name)
        if needs is None:
            hint = did_you_mean(name, ctx.method.roles)
            message = f"method {ctx.method.name} has no role {name!r}{hint}"
            problems.append(ctx.problem(f"roles.{name}", message, cure=f"Its roles: {', '.join(ctx.method.roles)}."))
        elif needs.made_by_method and role.path:
            message = f"the role {name} is made by the method {ctx.method.name}, it has no path"
            problems.append(
                ctx.problem(f"roles.{name}.path", message, cure="Remove it; its weights are in the run's checkpoints.")
            )
        elif role.trainable is not None and role.trainable != needs.trainable:
            wanted = "trained" if needs.trainable else "frozen"
            said = str(role.trainable).lower()
            message = f"method {ctx.method.name} needs its {name} {wanted}, and the file says trainable: {said}"
            cure = f"Write trainable: {str(needs.trainable).lower()}, or leave it out."
            problems.append(ctx.problem(f"roles.{name}.trainable", message, cure=cure))
    return problems


def _latent_space(ctx: CheckContext) -> list[Problem]:
    spaces = {name: family.latent_space or family.name for name, family in ctx.families.items()}
    if len({family.name for family in ctx.families.values()}) <= 1:
        return []
    if len(set(spaces.values())) == 1:
        return [ctx.problem("roles", "roles of different families in one run are not implemented yet")]
    listed = ", ".join(f"{role} ({ctx.families[role].name}): {space}" for role, space in spaces.items())
    return [ctx.problem("roles", f"the roles do not share a latent space: {listed}", cure="Use one family for all roles.")]


def _primitives(ctx: CheckContext) -> list[Problem]:
    """``needs ⊆ provides``, from descriptors alone."""
    family = next(iter(ctx.families.values()))
    missing = dict(missing_primitives(ctx.method, family, ctx.run.roles))
    if ctx.run.training.log_validation and not frozenset(family.provides) >= SAMPLING_PRIMITIVES:
        missing["validation"] = SAMPLING_PRIMITIVES - frozenset(family.provides)
    cure = "`fvd plugins matrix` shows which methods run on which families."
    own = f"method {ctx.method.name}"
    return [
        ctx.problem(
            "recipe",
            f"{who or own} needs {', '.join(sorted(names))}, which family {family.name} does not provide [P11]",
            cure=cure,
        )
        for who, names in missing.items()
    ]


def _sampler(ctx: CheckContext, plugins: Plugins) -> list[Problem]:
    kind = ctx.run.pipeline_config.sampler_kind
    if kind is None:
        return []
    try:
        sampler = plugins.spec("sampler", kind)
    except PluginError as error:
        return [ctx.problem("pipeline_config.sampler_kind", error.message, cure=error.cure)]
    return [
        ctx.problem("pipeline_config.sampler_kind", f"family {family.name} has no scheduler for the sampler {kind}")
        for family in {family.name: family for family in ctx.families.values()}.values()
        if isinstance(sampler, SamplerSpec) and sampler.scheduler not in family.samplers
    ]


def _trackers(ctx: CheckContext, plugins: Plugins) -> list[Problem]:
    problems = []
    for name in ctx.run.training.trackers:
        try:
            plugins.spec("tracker", name)
        except PluginError as error:
            problems.append(ctx.problem("training.trackers", error.message, cure=error.cure))
    return problems


def _validator(ctx: CheckContext, plugins: Plugins) -> list[Problem]:
    if not ctx.run.training.log_validation:
        return []
    chosen, family = ctx.run.training.validator, next(iter(ctx.families.values()))
    try:
        plugins.spec("validator", chosen or plugins.validator_of(family))
    except PluginError as error:
        return [ctx.problem("training.validator" if chosen else "recipe.family", error.message, cure=error.cure)]
    return []


def _output(ctx: CheckContext) -> list[Problem]:
    if Path(ctx.run.training.output_dir).expanduser().is_file():
        return [ctx.problem("training.output_dir", "is a file", cure="Name a folder.")]
    return []


def _size(ctx: CheckContext) -> list[Problem]:
    """A size that is said in part would be left aside in silence."""
    training = ctx.run.training
    sizes = {"num_frames": training.num_frames, "num_height": training.num_height, "num_width": training.num_width}
    given = [name for name, size in sizes.items() if size is not None]
    if len(given) in (0, len(sizes)):
        return []
    missing = ", ".join(f"training.{name}" for name in sizes if name not in given)
    # Files of other programs may say the length by num_latent_t alone; there the data decide, as they do there.
    severity: Severity = "warning" if training.num_latent_t else "error"
    message = f"has no effect without {missing}"
    return [ctx.problem(f"training.{name}", message, cure="Give all three or none.", severity=severity) for name in given]


def _data(ctx: CheckContext, plugins: Plugins) -> list[Problem]:
    return _folders(ctx, plugins, "data_path", ctx.run.training.data_sources())


def _folders(ctx: CheckContext, plugins: Plugins, key: str, folders: list[tuple[Path, int]]) -> list[Problem]:
    """What is wrong, at first sight, with the folders that ``training.<key>`` names."""
    family = next(iter(ctx.families.values()))
    kind = plugins.spec("dataset_kind", plugins.dataset_kind_of(family))
    if folders and isinstance(kind, DatasetKindSpec) and not kind.reads_folders:
        message = f"has no effect: the family {family.name} makes its data itself"
        return [ctx.problem(f"training.{key}", message, severity="warning")]
    return [
        ctx.problem(f"training.{key}", lack, cure=f"{PREPARE_DATA} `fvd run` needs it.", severity="warning")
        for folder, _ in folders
        if (lack := _lack_of(folder, holds_parquet=kind is plugins.spec("dataset_kind", PARQUET)))
    ]


def _lack_of(folder: Path, *, holds_parquet: bool) -> str:
    """What is wrong with a folder of data at first sight, or nothing."""
    if not folder.exists():
        return f"there is no folder {folder} here"
    if holds_parquet and not any(folder.rglob("*.parquet")):
        return f"{folder} holds no prepared data"
    return ""


def _ladder(ctx: CheckContext) -> list[Problem]:
    """A few-step student is sampled as it is trained: what the file says against it has no effect."""
    training, ladder = ctx.run.training, ctx.run.method_config.sampling_ladder()
    if ladder is None:
        return []
    steps, method, problems = len(ladder.timesteps), ctx.method.name, []
    if "validation_sampling_steps" in training.model_fields_set and training.validation_sampling_steps != (steps,):
        said = ", ".join(map(str, training.validation_sampling_steps))
        message = f"{said} has no effect: the student of {method} is trained, and sampled, on a ladder of {steps} steps"
        cure = f"Remove it, or write {steps}."
        problems.append(ctx.problem("training.validation_sampling_steps", message, cure=cure, severity="warning"))
    scale = training.validation_guidance_scale
    if "validation_guidance_scale" in training.model_fields_set and scale != ladder.guidance_scale:
        message = f"{scale:g} has no effect: the student of {method} is sampled with guidance {ladder.guidance_scale:g}"
        cure = f"Remove it, or write {ladder.guidance_scale:g}."
        problems.append(ctx.problem("training.validation_guidance_scale", message, cure=cure, severity="warning"))
    sampler = ctx.run.pipeline_config.sampler_kind
    if sampler not in (None, ladder.sampler_kind):
        message = f"{sampler} has no effect: the student of {method} is sampled by {ladder.sampler_kind}, as it is trained"
        cure = f"Remove it, or write {ladder.sampler_kind}."
        problems.append(ctx.problem("pipeline_config.sampler_kind", message, cure=cure, severity="warning"))
    return problems


def _held_out(ctx: CheckContext, plugins: Plugins) -> list[Problem]:
    """Where the samples of the held-out loss come from."""
    training = ctx.run.training
    if training.computes_held_out_loss and not ctx.method.held_out_loss:
        keys = {"validation_split": training.validation_split > 0, "validation_data_path": bool(training.validation_data_path)}
        message = f"the method {ctx.method.name} has no loss to compute on held-out samples"
        return [ctx.problem(f"training.{key}", message, cure="Remove it.") for key, is_given in keys.items() if is_given]
    if training.validation_data_path is None:
        return []
    key, cure = "training.validation_data_path", "Remove it and set training.validation_split."
    if training.validation_split > 0:
        message = "training.validation_split is given too, and the held-out loss has one source"
        return [ctx.problem(key, message, cure="Give one of the two.")]
    family = next(iter(ctx.families.values()))
    kind = plugins.spec("dataset_kind", plugins.dataset_kind_of(family))
    if isinstance(kind, DatasetKindSpec) and not kind.reads_folders:
        return [ctx.problem(key, f"the family {family.name} makes its data itself, and has no other", cure=cure)]
    trained_on = [_resolved(folder) for folder, _ in training.data_sources()]
    problems = []
    for folder, _ in training.validation_data_sources():
        path = _resolved(folder)
        if any(path.is_relative_to(other) or other.is_relative_to(path) for other in trained_on):
            message = f"{folder} is trained on: it is in training.data_path, or one lies inside the other"
            problems.append(ctx.problem(key, message, cure=f"Name another folder, or: {cure}"))
    return [*problems, *_folders(ctx, plugins, "validation_data_path", training.validation_data_sources())]


def _resolved(folder: Path) -> Path:
    """The folder itself, by whatever name; where there can be none of that name, the name."""
    try:
        return folder.resolve()
    except (OSError, ValueError, RuntimeError):
        return folder.absolute()


def missing_roles(
    method: MethodSpec, given: list[str], locate: Callable[[tuple[str, ...]], tuple[str, int | None]]
) -> list[Problem]:
    """One problem for each role that the method needs and the file does not name."""
    problems = []
    for role in method.required_roles:
        needs = method.roles[role]
        if role not in given:
            file, line = locate(("roles",))
            kind = "trained" if needs.trainable else "frozen"
            written = "{}" if needs.made_by_method else "{path: FOLDER_OR_HUB_ID}"
            problems.append(
                Problem(
                    message=f"method {method.name} needs the role {role!r}{did_you_mean(role, given)}",
                    key="roles",
                    file=file,
                    line=line,
                    cure=f"Add under roles:  {role}: {written}  ({kind})",
                )
            )
    return problems
