"""A plugin's exception in one line: what, where in its code, and what a user can do about it."""

from __future__ import annotations

from fvd.plugins.discovery import LOCAL, Unusable, canonical
from fvd.plugins.required import requirement_names


def describe(error: BaseException) -> str:
    """``ValueError: what it says``, on one line. Never fails, whatever the exception does when it is asked for its text."""
    try:
        text = " ".join(str(error).split())
    except KeyboardInterrupt:
        raise
    except BaseException:
        text = "(its text cannot be shown)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def place_in(module: str, error: BaseException) -> str:
    """`` (fvd_x.plugin, line 12)``: the innermost frame in the module's own package, or nothing."""
    place, step = "", error.__traceback__
    while step is not None:
        name = str(step.tb_frame.f_globals.get("__name__", ""))
        if same_package(name, module):
            place = f" ({name}, line {step.tb_lineno})"
        step = step.tb_next
    return place


def same_package(one: str, other: str) -> bool:
    return one.partition(".")[0] == other.partition(".")[0]


def import_failure(distribution: str, module: str, error: BaseException) -> Unusable:
    """P03 for an exception that importing ``module`` raised. A module that is missing is told from a mistake."""
    place = place_in(module, error)
    if isinstance(error, ModuleNotFoundError) and isinstance(error.name, str):
        if same_package(error.name, module):
            return Unusable("broken", "P03", f"module {error.name!r} is not there{place}", reinstall(distribution))
        cure = complete(distribution, error.name)
        return Unusable("broken", "P03", f"import failed: missing dependency {error.name!r}{place}", cure)
    cure = "Correct the file." if distribution == LOCAL else f"Report it to the authors of {distribution}, or disable it."
    return Unusable("broken", "P03", f"import failed: {describe(error)}{place}", cure)


def reinstall(distribution: str) -> str:
    """The cure for files that are missing."""
    if distribution == LOCAL:
        return "Put the module beside the file, or install it."
    return f"python -m pip install {distribution} --force-reinstall --no-deps"


def complete(distribution: str, module: str) -> str:
    """The cure for a dependency that is missing: ``module`` could not be imported."""
    if distribution == LOCAL:
        return "Install what the file imports."
    package = module.partition(".")[0]
    if canonical(package) in requirement_names(distribution):
        return f"python -m pip install {distribution}   (brings the dependencies that it declares)"
    return (
        f"Install what provides the module {package!r}, and tell the authors of {distribution}: "
        "they declare no dependency of that name."
    )
