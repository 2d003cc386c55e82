"""Which methods run on which families: decided from descriptors, without torch."""

from __future__ import annotations

from collections.abc import Collection

from fvd.specs import FamilySpec, MethodSpec


def missing_primitives(
    method: MethodSpec, family: FamilySpec, roles: Collection[str] | None = None
) -> dict[str, frozenset[str]]:
    """What ``method`` needs and ``family`` does not provide, where every role is of that family.

    roles: those of the run; default, the ones that every run has. By who needs it: a role's name, or ``""`` for what the
    method calls on the adapter itself. Empty: it fits.
    """
    named = method.required_roles if roles is None else [role for role in method.roles if role in roles]
    needs = {"": method.needs, **{role: method.roles[role].needs for role in named}}
    missing = {who: frozenset(wanted) - frozenset(family.provides) for who, wanted in needs.items()}
    return {who: names for who, names in missing.items() if names}


def describe_fit(method: MethodSpec, family: FamilySpec) -> str:
    """``✓``, or the missing primitives: ``decode, predict (teacher)``; where only an optional role does not fit, ``✓ without
    discriminator``."""
    roles_of: dict[str, list[str]] = {}
    for role, names in missing_primitives(method, family).items():
        for name in names:
            roles_of.setdefault(name, []).append(role)
    # What the adapter itself lacks is missing for everybody; otherwise the roles that need it matter.
    parts = [name if "" in roles else f"{name} ({', '.join(sorted(roles))})" for name, roles in sorted(roles_of.items())]
    return ", ".join(parts) or " ".join(["✓", *_optional_roles_left_out(method, family)])


def _optional_roles_left_out(method: MethodSpec, family: FamilySpec) -> list[str]:
    """``without discriminator``, where the family lacks what that needs."""
    left_out = sorted(missing_primitives(method, family, method.roles))
    return [f"without {', '.join(left_out)}"] if left_out else []
