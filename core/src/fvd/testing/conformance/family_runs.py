"""B114, B115: a family in real runs, and out of them."""

from __future__ import annotations

import torch

from fvd.config.models import MethodConfig
from fvd.errors import FvdError, ModelError
from fvd.roles import RoleHandle
from fvd.testing.conformance.asserts import refused, require, require_close
from fvd.testing.conformance.counterparts import TOY_METHOD
from fvd.testing.conformance.examination import Subject
from fvd.testing.conformance.outcomes import CheckFailure
from fvd.testing.conformance.runs import Trial, require_resumable


def export(subject: Subject) -> None:
    """B114: for every format; one that `load_role` does not read must not be the only one."""
    bench = subject.family
    bench.require_primitives("predict")
    trained = bench.load_role("student", bench.path, trainable=True)
    _nudge(trained)
    t = bench.t(0.4)
    expected = bench.predict(trained, t)
    unreadable: list[str] = []
    for format_name in bench.spec.export_formats:
        out = subject.make_folder("exported")
        bench.family.export(trained, out, format_name)
        require(any(out.iterdir()), f"export in format {format_name!r} writes nothing into the folder that it is given")
        try:
            loaded = bench.load_role("student", str(out), trainable=True)
        except ModelError as error:
            unreadable.append(f"{format_name}: {error.message}")
            continue
        require_close(
            bench.predict(loaded, t), expected, f"exported as {format_name!r} and loaded again, a role predicts something else"
        )
    if len(unreadable) == len(bench.spec.export_formats):
        raise CheckFailure(f"load_role reads none of the formats that export writes ({'; '.join(unreadable)})")
    unknown = refused(lambda: bench.family.export(trained, subject.make_folder("unknown"), "no_such_format"))
    require(isinstance(unknown, FvdError), f"export to a format that there is not must raise fvd.FvdError, got {unknown!r}")


@torch.no_grad()
def _nudge(handle: RoleHandle) -> None:
    """As if it had been trained: an export of the weights that were loaded would go unnoticed."""
    for parameter in handle.trainable_parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))


def resume(subject: Subject) -> None:
    """B115: with the toy method, through `fvd run`."""
    bench = subject.family
    bench.require_primitives("add_noise", "training_target", "shift_and_clamp_timestep", "num_train_timesteps", "predict")
    training: dict[str, object] = {
        "learning_rate": 1e-3,
        "seed": 3,
        "training_cfg_rate": 0.5 if bench.drops_conditioning else 0.0,
    }
    if bench.reads_folders:
        training["data_path"] = str(bench.data_folder)
    trial = Trial(
        plugins=subject.plugins,
        family=subject.name,
        method=TOY_METHOD,
        models={"student": (bench.path, True)},
        pipeline_config=bench.config,
        method_config=MethodConfig(),
        training=training,
    )
    require_resumable(trial, subject.make_folder("runs"), 2)
