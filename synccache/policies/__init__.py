"""The library of policies: one callable per method, each returning a Policy.

    policies.asymmetric(threshold=0.15)
    policies.by_name("first_block_cache")

The language itself is in synccache.policies.dsl; docs/policies.md is its reference.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType

from synccache.errors import PolicyError
from synccache.policies.asymmetric import asymmetric
from synccache.policies.avatar_schedule import avatar_schedule
from synccache.policies.blockdance import blockdance
from synccache.policies.clusca import clusca
from synccache.policies.combine import only as only
from synccache.policies.combine import switch as switch
from synccache.policies.confidence_taylor import confidence_taylor
from synccache.policies.dbcache import dbcache
from synccache.policies.delta_dit import delta_dit
from synccache.policies.dicache import dicache
from synccache.policies.dsl import Policy
from synccache.policies.duca import duca
from synccache.policies.easycache import easycache
from synccache.policies.exact import exact
from synccache.policies.fastercache import fastercache
from synccache.policies.first_block_cache import first_block_cache
from synccache.policies.fora import fora
from synccache.policies.freqca import freqca
from synccache.policies.hicache import hicache
from synccache.policies.magcache import magcache
from synccache.policies.omnicache import omnicache
from synccache.policies.pab import pab
from synccache.policies.planned import planned
from synccache.policies.seacache import seacache
from synccache.policies.serialise import from_json as from_json
from synccache.policies.serialise import to_json as to_json
from synccache.policies.speca import speca
from synccache.policies.step_mask import step_mask
from synccache.policies.taylorseer import taylorseer
from synccache.policies.taylorseer_lite import taylorseer_lite
from synccache.policies.teacache import teacache
from synccache.policies.toca import toca

__all__ = [
    "asymmetric",
    "avatar_schedule",
    "blockdance",
    "clusca",
    "confidence_taylor",
    "dbcache",
    "delta_dit",
    "dicache",
    "duca",
    "easycache",
    "exact",
    "fastercache",
    "first_block_cache",
    "fora",
    "freqca",
    "hicache",
    "magcache",
    "omnicache",
    "pab",
    "planned",
    "seacache",
    "speca",
    "step_mask",
    "taylorseer",
    "taylorseer_lite",
    "teacache",
    "toca",
]

LIBRARY: Mapping[str, Callable[..., Policy]] = MappingProxyType(
    {name: globals()[name] for name in __all__}
)


def method(name: str) -> Callable[..., Policy]:
    """The method of this name, to be called with its arguments.

    Raises:  PolicyError for an unknown name.
    """
    if not isinstance(name, str):
        raise PolicyError(f"a policy is asked for by its name, a text, got {name!r}.")
    if name not in LIBRARY:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), LIBRARY, n=1)
        meant = f"Did you mean {near[0]!r}? " if near else ""
        raise PolicyError(
            f"no policy is called {name!r}.", hint=f"{meant}Known are {', '.join(LIBRARY)}."
        )
    return LIBRARY[name]


def by_name(name: str) -> Policy:
    """The policy of this name with its defaults.

    Raises:  PolicyError for an unknown name, and for a method that has no default to start from.
    """
    made = method(name)
    for parameter in inspect.signature(made).parameters.values():
        if parameter.default is parameter.empty:
            raise PolicyError(
                f"{name} has no default for {parameter.name!r}.",
                hint=f"Call it: synccache.policies.{name}(...).",
            )
    return made()
