"""Roles that are no models of the family: the method makes them, once it is known what there is to look at."""

from __future__ import annotations

from collections.abc import Sequence

from fvd.adapters import Adapter
from fvd.config.models import RunConfig
from fvd.errors import PluginError, mistake_in_code
from fvd.methods import Method
from fvd.roles import RoleManager
from fvd.specs import MethodSpec


def made_role_names(run: RunConfig, spec: MethodSpec) -> list[str]:
    """Those of the run file's roles that the method makes."""
    return [name for name in run.roles if name in spec.roles and spec.roles[name].made_by_method]


def add_made_roles(
    names: Sequence[str],
    method_class: type[Method],
    *,
    run: RunConfig,
    roles: RoleManager,
    adapter: Adapter,
    latent_shape: tuple[int, int, int, int],
) -> None:
    """Add the roles ``names``, which the method makes, to ``roles``. Raises PluginError where it makes others."""
    if not names:
        return
    made = method_class.build_roles(run=run, roles=roles, adapter=adapter, latent_shape=latent_shape)
    if sorted(handle.name for handle in made) != sorted(names) or not all(handle.trainable for handle in made):
        said = ", ".join(f"{handle.name} ({'trained' if handle.trainable else 'frozen'})" for handle in made) or "none"
        raise PluginError(
            f"the method {run.recipe.method} must make the trained roles {', '.join(names)}, and has made: {said}",
            cure=mistake_in_code("the method's"),
        )
    for handle in made:
        roles.add(handle)
