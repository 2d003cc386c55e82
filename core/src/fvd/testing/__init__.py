"""Public tools for testing plugins. This module and what it exports need neither torch nor pytest.

    FamilyConformance, …    the conformance kit as pytest classes, see `fvd.testing.conformance`
    fake_dist               an installed plugin, made of a few strings
    installed_in            its folder on ``sys.path`` for a while
    assert_light_module     that a plugin's light module loads nothing heavy

`fvd.testing.fixtures` has pytest fixtures: ``pytest_plugins = ["fvd.testing.fixtures"]``. `fvd.testing.toy` is a family to
test methods on, and `fvd.testing.steps` makes their steps; both need torch.
"""

from __future__ import annotations

from fvd.testing.conformance import FamilyConformance as FamilyConformance
from fvd.testing.conformance import MethodConformance as MethodConformance
from fvd.testing.conformance import SamplerConformance as SamplerConformance
from fvd.testing.conformance import TrackerConformance as TrackerConformance
from fvd.testing.conformance import ValidatorConformance as ValidatorConformance
from fvd.testing.distributions import fake_dist as fake_dist
from fvd.testing.distributions import installed_in as installed_in
from fvd.testing.light import assert_light_module as assert_light_module
from fvd.testing.light import loaded_modules as loaded_modules

__all__ = [
    "FamilyConformance",
    "MethodConformance",
    "SamplerConformance",
    "TrackerConformance",
    "ValidatorConformance",
    "assert_light_module",
    "fake_dist",
    "installed_in",
    "loaded_modules",
]
