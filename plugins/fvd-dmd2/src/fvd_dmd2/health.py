from __future__ import annotations


def dmd2_rules(config):
    return []
