"""What can be said of a parsed run file without torch: roles, capabilities, samplers, paths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fvd.config.check import CheckContext
from fvd.errors import PluginError, Problem, did_you_mean
from fvd.plugins import Plugins
from fvd.specs import SAMPLING_PRIMITIVES, FamilySpec, MethodSpec, SamplerSpec


def check_run(ctx: CheckContext, plugins: Plugins) -> list[Problem]:
    """Every finding of core about ``ctx.run``."""
    return [
        *_roles(ctx),
        *_latent_space(ctx),
        *_primitives(ctx),
        *_sampler(ctx, plugins),
        *_trackers(ctx, plugins),
        *_data(ctx),
        *_validation(ctx),
    ]


def _roles(ctx: CheckContext) -> list[Problem]:
    problems = missing_roles(ctx.method, list(ctx.run.roles), lambda key: ctx.locate(".".join(key)))
    for name, role in ctx.run.roles.items():
        needs = ctx.method.roles.get(name)
        if needs is None:
            hint = did_you_mean(name, ctx.method.roles)
            message = f"method {ctx.method.name} has no role {name!r}{hint}"
            problems.append(ctx.problem(f"roles.{name}", message, cure=f"Its roles: {', '.join(ctx.method.roles)}."))
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
    """``needs ⊆ provides``, from descriptors alone. The recipe's family builds the adapter for all roles."""
    problems = []
    for role, needs in ctx.method.roles.items():
        family = ctx.families.get(role)
        if family:
            problems += _missing_primitives(ctx, family, set(needs.needs), f"role {role}")
    family = next(iter(ctx.families.values()))
    problems += _missing_primitives(ctx, family, set(ctx.method.needs), "method")
    if ctx.run.training.log_validation:
        problems += _missing_primitives(ctx, family, set(SAMPLING_PRIMITIVES), "validation")
    return problems


def _missing_primitives(ctx: CheckContext, family: FamilySpec, needs: set[str], who: str) -> list[Problem]:
    missing = sorted(needs - set(family.provides))
    if not missing:
        return []
    message = f"{ctx.method.name} ({who}) needs {', '.join(missing)}, which family {family.name} does not provide"
    return [ctx.problem("recipe", message, cure="`fvd plugins matrix` shows which methods run on which families.")]


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


def _data(ctx: CheckContext) -> list[Problem]:
    cure = "Make it with `fvd data prepare CLIPS --family FAMILY --model MODEL --out FOLDER`. `fvd run` needs it."
    return [
        ctx.problem("training.data_path", f"there is no folder {folder} here", cure=cure, severity="warning")
        for folder, _ in ctx.run.training.data_sources()
        if not folder.exists()
    ]


def _validation(ctx: CheckContext) -> list[Problem]:
    training = ctx.run.training
    if not training.log_validation:
        return []
    if training.validation_dataset_file is None:
        cure = "Name a json, jsonl, csv or txt file of prompts, or write log_validation: false."
        return [ctx.problem("training.log_validation", "validation needs training.validation_dataset_file", cure=cure)]
    path = Path(training.validation_dataset_file).expanduser()
    if not path.exists():
        return [
            ctx.problem(
                "training.validation_dataset_file",
                f"there is no file {path} here",
                cure="`fvd run` needs it.",
                severity="warning",
            )
        ]
    return []


def missing_roles(
    method: MethodSpec, given: list[str], locate: Callable[[tuple[str, ...]], tuple[str, int | None]]
) -> list[Problem]:
    """One problem for each role that the method needs and the file does not name."""
    problems = []
    for role, needs in method.roles.items():
        if role not in given:
            file, line = locate(("roles",))
            kind = "trained" if needs.trainable else "frozen"
            problems.append(
                Problem(
                    message=f"method {method.name} needs the role {role!r}{did_you_mean(role, given)}",
                    key="roles",
                    file=file,
                    line=line,
                    cure=f"Add under roles:  {role}: {{path: FOLDER_OR_HUB_ID}}  ({kind})",
                )
            )
    return problems
