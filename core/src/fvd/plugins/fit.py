"""Which methods run on which families: decided from descriptors, without torch."""

from __future__ import annotations

from fvd.specs import FamilySpec, MethodSpec


def missing_primitives(method: MethodSpec, family: FamilySpec) -> dict[str, frozenset[str]]:
    """What ``method`` needs and ``family`` does not provide, where every role is of that family.

    By who needs it: a role's name, or ``""`` for what the method calls on the adapter itself. Empty: it fits.
    """
    needs = {"": method.needs, **{role: of_role.needs for role, of_role in method.roles.items()}}
    missing = {who: frozenset(wanted) - frozenset(family.provides) for who, wanted in needs.items()}
    return {who: names for who, names in missing.items() if names}


def describe_fit(method: MethodSpec, family: FamilySpec) -> str:
    """``✓``, or the missing primitives: ``decode, predict (teacher)``."""
    roles_of: dict[str, list[str]] = {}
    for role, names in missing_primitives(method, family).items():
        for name in names:
            roles_of.setdefault(name, []).append(role)
    # What the adapter itself lacks is missing for everybody; otherwise the roles that need it matter.
    parts = [name if "" in roles else f"{name} ({', '.join(sorted(roles))})" for name, roles in sorted(roles_of.items())]
    return ", ".join(parts) or "✓"
