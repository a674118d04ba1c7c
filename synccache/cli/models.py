"""Models to try a policy on: tiny ones made in code, or the reader's own builder.

A builder takes no arguments and returns ``(model, inputs)``; ``inputs(noise, branch)`` are the keyword
arguments of one call at a noise level from 1 down towards 0, for a guidance branch from 0.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from synccache.errors import SynccacheError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build_model"]


def build_model(spec: str) -> tuple[nn.Module, Callable[[float, int], dict[str, Any]]]:
    """The model and inputs of ``tiny-...`` or of ``module:callable``.

    Raises:  SynccacheError for an unknown name, a module or callable that is not there, or a callable
        that returns something else. What a builder itself raises is not caught.
    """
    built = (_own if ":" in spec else _tiny)(spec)()
    if not isinstance(built, tuple) or len(built) != 2 or not callable(built[1]):
        raise SynccacheError(
            f"expected (model, inputs), got {built!r:.80}.",
            where=f"--model {spec}",
            hint="inputs(noise, branch) returns the keyword arguments of one call.",
        )
    return built


def _tiny(spec: str) -> Callable[[], Any]:
    if importlib.util.find_spec("diffusers") is None:
        raise SynccacheError(
            f"the model {spec!r} is made from diffusers, which is not installed.",
            hint="pip install 'synccache[diffusers]', or give --model module:callable.",
        )
    from synccache.integrations.diffusers.tiny_models import TINY_MODELS

    if spec not in TINY_MODELS:
        raise SynccacheError(
            f"no model is called {spec!r}.",
            hint=f"Known are {', '.join(TINY_MODELS)}; module:callable names a builder of your own.",
        )
    return TINY_MODELS[spec]


def _own(spec: str) -> Callable[[], Any]:
    name, _, attribute = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # an installed command does not look where it is called
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        raise SynccacheError(f"no module is called {name!r}.", where=f"--model {spec}")
    found = getattr(importlib.import_module(name), attribute, None)
    if not callable(found):
        raise SynccacheError(
            f"{name} has no function {attribute!r}.", where=f"--model {spec}",
            hint="It takes no arguments and returns (model, inputs).",
        )  # fmt: skip
    return found
