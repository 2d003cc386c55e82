"""Public tools for testing plugins. This module and what it exports need neither torch nor pytest.

    fake_distribution       an installed plugin, made of a few strings
    installed_in            its folder on ``sys.path`` for a while
    assert_light_module     that a plugin's light module loads nothing heavy

`fvd.testing.toy` is a family to test methods on; it needs torch and is imported by its own name.
"""

from __future__ import annotations

from fvd.testing.distributions import fake_distribution as fake_distribution
from fvd.testing.distributions import installed_in as installed_in
from fvd.testing.light import assert_light_module as assert_light_module
from fvd.testing.light import loaded_modules as loaded_modules

__all__ = ["assert_light_module", "fake_distribution", "installed_in", "loaded_modules"]
