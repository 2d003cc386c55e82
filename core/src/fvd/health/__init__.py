"""Alarms: named, understandable findings about the metrics of a run, each with its remedy. Light.

A method gives its own with `fvd.Method.health_rules`; core adds those that hold for every method. Rules read the numbers
that a step has brought to the host anyway, so they cost no synchronisation. What they have seen is not saved: a resumed
run shows them again what it had logged (`fvd.health.past`).
"""

from fvd.health.rule import HealthRule as HealthRule
from fvd.health.series import LowestMedian as LowestMedian
from fvd.health.series import RecentMedian as RecentMedian
from fvd.health.series import Rise as Rise
