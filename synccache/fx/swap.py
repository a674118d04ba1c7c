"""Another policy on what was recorded for one: nothing is recorded again."""

from __future__ import annotations

from dataclasses import replace

from synccache.fx.cached_model import CachedModel
from synccache.policies.dsl import Policy


def with_policy(compiled: CachedModel, policy: Policy) -> CachedModel:
    """The same model with another policy, sharing weights and recordings; its caches are its own."""
    request = replace(compiled._request, policy=policy, plan=None, drift=None)
    other = CachedModel(compiled.model, request, compiled._builder)
    other.__dict__["_state"] = compiled._state
    for key, variants in compiled._variants.by_key.items():
        for variant in variants:
            fresh = other._build(variant.captured, variant.guidance_branches)
            other._variants.take(key, fresh)
    return other
