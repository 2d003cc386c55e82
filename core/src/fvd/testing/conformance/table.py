"""Every check of the kit: one line each. Light; the functions are imported when a check is made.

An id is never used again for another check. Sxx, static: what can be seen of a plugin without running more than its light
module. Cxx, contract: what a component's descriptor promises, on the loaded classes. Behaviour: B1xx of families, B2xx of
methods, B3xx of samplers, B4xx of validators, B5xx of trackers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fvd.testing.conformance.examination import Subject

KIT_VERSION = 1
"""Counts up with every change of what the checks ask for. Certificates carry it."""

Group = Literal["static", "contract", "behaviour"]
GROUPS: tuple[Group, ...] = ("static", "contract", "behaviour")

PLUGIN = "plugin"
"""What `Check.kinds` and `Subject.kind` say of a plugin as a whole, beside the kinds of its components."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check. ``kinds``: the kinds of components that it applies to. ``needs``: checks without which it means nothing;
    where one of them fails, it is skipped. ``target``: its function, ``module:function`` in this package."""

    id: str
    title: str
    group: Group
    kinds: frozenset[str]
    target: str
    needs: tuple[str, ...] = ()

    @property
    def function(self) -> Callable[[Subject], str | None]:
        """Raises `CheckFailure` (or anything else) where the subject fails, `CheckSkipped` where the check does not apply to
        it. May return a note."""
        module, _, name = self.target.partition(":")
        function: Callable[[Subject], str | None] = vars(import_module(f"{__package__}.{module}"))[name]
        return function

    @property
    def test_name(self) -> str:
        """The name of its method in the pytest classes: ``test_B104_add_noise_goes_from_data_to_noise``."""
        return f"test_{self.id}_{re.sub(r'[^a-z0-9]+', '_', self.title.lower()).strip('_')}"


COMPONENTS = frozenset({"family", "method", "sampler", "validator", "tracker", "dataset_kind", "command"})
CONFIGURED = frozenset({"family", "method"})
_BEHAVING = {"B1": "family", "B2": "method", "B3": "sampler", "B4": "validator", "B5": "tracker"}


def _static(check_id: str, target: str, title: str, *, kinds: Collection[str] = (PLUGIN,)) -> Check:
    return Check(id=check_id, title=title, group="static", kinds=frozenset(kinds), target=target)


def _contract(
    check_id: str, target: str, title: str, *, kinds: Collection[str] = COMPONENTS, needs: tuple[str, ...] = ("C01",)
) -> Check:
    return Check(id=check_id, title=title, group="contract", kinds=frozenset(kinds), target=target, needs=needs)


def _behaviour(check_id: str, target: str, title: str, *, needs: tuple[str, ...] = ()) -> Check:
    """The first check of a kind builds, and all others need it, unless they say more."""
    first = check_id[:2] + "01"
    kinds = frozenset({_BEHAVING[check_id[:2]]})
    needs = needs or (("C01",) if check_id == first else (first,))
    return Check(id=check_id, title=title, group="behaviour", kinds=kinds, target=target, needs=needs)


_DATA = ("B102",)
"""What a family predicts on are its own data."""
_STEPS = ("B210",)
"""A slip in a step ends it, whatever is looked at."""

CHECKS: tuple[Check, ...] = (
    _static("S01", "static:metadata", "metadata is complete, the entry point names a light module"),
    _static("S02", "static:core_range", "requires fvd-core with a lower and an upper bound"),
    _static("S03", "static:light_import", "imports without torch"),
    _static("S04", "static:descriptors", "loads, and its descriptors are well formed"),
    _static("S05", "static:example", "its example run file has no errors", kinds=CONFIGURED),
    _contract("C01", "contract:loads", "what its descriptor names loads and is of the right kind", needs=()),
    _contract("C02", "contract:primitives", "declares exactly what it implements", kinds=["family"], needs=("C01", "B101")),
    _contract("C03", "contract:signatures", "takes the arguments of the contract by name"),
    _contract("C04", "contract:config", "its config has defaults and descriptions, and rejects unknown keys", kinds=CONFIGURED),
    _contract("C05", "contract:pickles", "its config can be pickled, and what it says of its data", kinds=CONFIGURED),
    _behaviour("B101", "family_build:builds", "builds a tiny model on the CPU, trained and frozen"),
    _behaviour("B102", "family_data:data_feed_the_adapter", "its training data reach the adapter"),
    _behaviour(
        "B103",
        "family_data:text_alone_feeds_the_adapter",
        "data without latents are enough for rollouts from noise",
        needs=_DATA,
    ),
    _behaviour("B104", "family_schedule:add_noise_end_points", "add_noise goes from data to noise", needs=_DATA),
    _behaviour("B105", "family_schedule:identities", "x0, noise and prediction agree with each other", needs=_DATA),
    _behaviour("B106", "family_schedule:samples_are_independent", "a batch equals a loop over its samples", needs=_DATA),
    _behaviour("B107", "family_network:gradients", "gradients reach only trained roles", needs=_DATA),
    _behaviour(
        "B108", "family_network:deterministic", "the same inputs give the same output, without global randomness", needs=_DATA
    ),
    _behaviour("B109", "family_network:conditioning_matters", "conditioning makes a difference", needs=_DATA),
    _behaviour("B110", "family_network:dropped_conditioning", "a dropped condition is the empty prompt's", needs=_DATA),
    _behaviour(
        "B111",
        "family_schedule:shift_and_clamp",
        "shift_and_clamp_timestep is monotone, in range, and keeps the ends",
        needs=_DATA,
    ),
    _behaviour("B112", "family_sampling:samplers", "every declared sampler kind has a scheduler that samples", needs=_DATA),
    _behaviour(
        "B113", "family_sampling:decoding", "latent_shape agrees with the data, and decode gives videos in [0, 1]", needs=_DATA
    ),
    _behaviour("B114", "family_runs:export", "an exported role loads and predicts the same", needs=_DATA),
    _behaviour("B115", "family_runs:resume", "a run in two halves equals a straight one", needs=_DATA),
    _behaviour("B116", "family_network:attention", "every declared attention runs", needs=_DATA),
    _behaviour("B117", "family_network:recomputation", "recomputing activations changes no gradient", needs=_DATA),
    _behaviour("B118", "family_sampling:release", "works again after release()", needs=_DATA),
    _behaviour(
        "B119",
        "family_sampling:scheduler_takes_predictions",
        "its scheduler means what its network predicts",
        needs=("B104", "B112"),
    ),
    _behaviour("B120", "family_features:features", "features are of the forward that predicts", needs=("B106", "B107")),
    _behaviour("B201", "method_build:builds", "builds from its example"),
    _behaviour("B202", "method_steps:steps_are_finite", "trains: losses are finite, weights move", needs=_STEPS),
    _behaviour("B203", "method_steps:calls_what_it_declares", "calls only primitives that it declares", needs=_STEPS),
    _behaviour("B204", "method_steps:gradients", "gradients reach only the role that a loss is for", needs=_STEPS),
    _behaviour("B205", "method_steps:same_seed", "the same seed gives the same losses, another one others", needs=_STEPS),
    _behaviour("B206", "method_steps:global_random_state", "neither uses nor disturbs the global random state", needs=_STEPS),
    _behaviour("B207", "method_steps:micro_batches", "a batch of two equals two micro-batches of one", needs=_STEPS),
    _behaviour("B208", "method_runs:resume", "a run in two halves equals a straight one", needs=_STEPS),
    _behaviour("B209", "method_runs:sampling_plan", "its sampling plan is valid and samples"),
    _behaviour("B210", "method_steps:keeps_the_contract", "its losses and metrics are what core checks at every yield"),
    _behaviour(
        "B211", "method_learning:learns_alike", "learns on every toy what it learns on one", needs=("B202", "B209", "B210")
    ),
    _behaviour("B301", "sampler_checks:samples", "makes finite latents of the shape of its noise"),
    _behaviour("B302", "sampler_checks:same_generators", "the same generators give the same latents"),
    _behaviour("B303", "sampler_checks:neighbours", "a sample does not depend on its neighbours"),
    _behaviour("B304", "sampler_checks:leaves_no_trace", "leaves input, graph and global random state alone"),
    _behaviour("B305", "sampler_checks:any_ladder", "runs on any descending list of timesteps"),
    _behaviour("B306", "sampler_checks:quality", "many steps with an exact denoiser land on the data"),
    _behaviour("B401", "validator_checks:writes_artifacts", "writes the artifacts that it reports"),
    _behaviour("B402", "validator_checks:leaves_no_trace", "leaves training as it was"),
    _behaviour("B501", "tracker_checks:logs", "logs whatever a run logs, and finishes"),
    _behaviour("B502", "tracker_checks:writes_into_its_folder", "writes only into its own folder"),
    _behaviour("B503", "tracker_checks:resumes", "goes on in the folder of an earlier run"),
)


def checks_of(kind: str) -> list[Check]:
    """The checks that apply to a kind, in order."""
    return [check for check in CHECKS if kind in check.kinds]
