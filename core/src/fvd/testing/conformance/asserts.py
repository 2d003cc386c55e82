"""What the checks of behaviour say again and again. Needs torch."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fvd.testing.conformance.outcomes import CheckFailure

Item = TypeVar("Item")

RELATIVE_TOLERANCE = 1e-4
"""What float32 and another order of summation may cost. Relative to the largest value."""


def require(condition: bool, message: str) -> None:
    """Raise CheckFailure with ``message`` unless ``condition``."""
    if not condition:
        raise CheckFailure(message)


def describe_tensor(value: object) -> str:
    """``float32 [2, 16, 3, 8, 8]``, or the type of what is no tensor."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return f"a {type(value).__name__}"


def require_tensor(value: object, shape: Sequence[int], what: str) -> Tensor:
    """``value``, a finite float32 tensor of ``shape``."""
    wanted = f"a float32 tensor {list(shape)}"
    right = isinstance(value, Tensor) and list(value.shape) == list(shape) and value.dtype == torch.float32
    require(right, f"{what} must be {wanted}, got {describe_tensor(value)}")
    assert isinstance(value, Tensor)
    require(bool(torch.isfinite(value).all()), f"{what} holds NaN or infinite values")
    return value


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest value of either; 0 for tensors of zeros."""
    one, other = one.detach().double(), other.detach().double()
    scale = max(float(one.abs().max()), float(other.abs().max()))
    return float((one - other).abs().max()) / scale if scale > 0 else 0.0


def require_close(got: Tensor, wanted: Tensor, message: str, *, tolerance: float = RELATIVE_TOLERANCE) -> None:
    if got.shape != wanted.shape:
        raise CheckFailure(f"{message}: shapes {list(got.shape)} and {list(wanted.shape)}")
    found = difference(got, wanted)
    require(found <= tolerance, f"{message}: they differ by {found:.2g} of the largest value, allowed is {tolerance:g}")


def require_equal(got: Tensor, wanted: Tensor, message: str) -> None:
    """Bit for bit."""
    if not torch.equal(got, wanted):
        raise CheckFailure(f"{message}: they differ by {difference(got, wanted):.2g} of the largest value")


def require_different(one: Tensor, other: Tensor, message: str) -> None:
    require(one.shape != other.shape or difference(one, other) > 1e-6, message)


@contextmanager
def global_random_state_untouched(what: str) -> Iterator[None]:
    """Raise CheckFailure where the block moves one of Python's, NumPy's or torch's global generators."""
    before = _global_states()
    yield
    moved = [name for name, state in _global_states().items() if state != before[name]]
    require(not moved, f"{what} draws from the global random state of {', '.join(moved)}; draw from the generators given")


def _global_states() -> dict[str, object]:
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "Python's random": random.getstate(),
        "NumPy": (kind, np.asarray(keys).tobytes(), position, has_gauss, cached),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }


def state_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Copies of every parameter and buffer."""
    return [tensor.detach().clone() for module in modules for tensor in (*module.parameters(), *module.buffers())]


def same_state(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    return len(before) == len(after) and all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def refused(action: Callable[[], object]) -> BaseException | None:
    """What ``action`` raises, or None."""
    try:
        action()
    except Exception as error:
        return error
    return None


@contextmanager
def without_output() -> Iterator[None]:
    """Core's tables and log lines say nothing to a plugin's author, who reads what a failed check has printed."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
