"""What is compiled: a module, or a function and the modules that it runs; what of it stays closed."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from synccache.errors import CaptureError, PolicyError


class FunctionModel(nn.Module):
    """A function as the forward of a module that owns the modules it runs, by name."""

    function: Callable[..., Any]

    @staticmethod
    def of(function: Callable[..., Any], modules: Mapping[str, nn.Module]) -> FunctionModel:
        """The module; its class has the function's name, which messages then show."""
        name = getattr(function, "__name__", type(function).__name__)
        made: FunctionModel = type(name, (FunctionModel,), {})()
        for path, module in modules.items():
            made.add_module(path, module)
        made.__dict__["function"] = made.__dict__["forward"] = function
        made.training = any(module.training for module in modules.values())
        return made

    def __reduce__(self) -> Any:
        return FunctionModel.of, (self.function, dict(self._modules))


def as_module(
    subject: nn.Module | Callable[..., Any],
    modules: Sequence[nn.Module] | Mapping[str, nn.Module] | None,
) -> nn.Module:
    """What ``compile`` was given, as one module.

    Raises:
        PolicyError: neither a module nor a function with modules.
    """
    if isinstance(subject, nn.Module):
        if modules is not None:
            raise PolicyError(
                "modules= names what a function runs; a torch.nn.Module has its own.",
                hint="Leave modules= out.",
            )
        return subject
    if not callable(subject):
        raise PolicyError(
            f"compile() takes a torch.nn.Module, got {type(subject).__name__}.",
            hint="Pass the transformer itself, e.g. pipe.transformer, or a function and modules=[...].",
        )
    named = dict(modules) if isinstance(modules, Mapping) else _named(modules or ())
    if not named or not all(isinstance(m, nn.Module) for m in named.values()):
        raise PolicyError(
            "compile() takes a torch.nn.Module, or a function together with the modules that it runs; "
            f"got a function with modules={modules!r}.",
            hint="Pass modules=[pipe.dit]: their weights and sub-modules then stay live.",
        )
    return FunctionModel.of(subject, named)


def main_module(model: nn.Module) -> str | None:
    """The path of a function's largest module, which is read as if it were the model itself."""
    if not isinstance(model, FunctionModel):
        return None
    sizes = {path: sum(p.numel() for p in m.parameters()) for path, m in model.named_children()}
    return max(sizes, key=lambda path: sizes[path])


def _named(modules: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """By class name, numbered where two are alike."""
    found: dict[str, nn.Module] = {}
    for module in modules:
        name, k = type(module).__name__, 1
        while name in found:
            k += 1
            name = f"{type(module).__name__}_{k}"
        found[name] = module
    return found


def closed_paths(model: nn.Module, leaves: Sequence[str]) -> frozenset[str]:
    """Paths of the modules that ``leaves`` names: paths, or patterns such as ``"blocks.*"``.

    Raises:
        CaptureError: one of them names no module.
    """
    paths = [path for path, _ in model.named_modules(remove_duplicate=False) if path]
    found: set[str] = set()
    for pattern in leaves:
        named = [p for p in paths if fnmatchcase(p, pattern)]
        if not named:
            near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.4)
            raise CaptureError(
                f"leaves={list(leaves)!r}: no module is called {pattern!r}.",
                where=type(model).__name__,
                hint=f"Near to it: {', '.join(near)}." if near else "See model.named_modules().",
            )
        found |= set(named)
    return frozenset(found)
