"""Policies from files: JSON as ``to_json`` writes it, or Python that makes one.

    load("my_policy.json")
    load("my_policy.py")          # its one function, called without arguments, or its one Policy
    load("my_policy.py:bolder")   # the function or value of this name

A Python file is executed, as an import would.
"""

from __future__ import annotations

import inspect
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from synccache.errors import PolicyError
from synccache.policies.dsl import Policy
from synccache.policies.serialise import from_json

__all__ = ["is_file", "load"]


def is_file(policy: str | Path) -> bool:
    """Whether this names a policy file rather than a method of the library."""
    return isinstance(policy, Path) or policy.endswith((".json", ".py")) or ".py:" in policy


def load(path: str | Path) -> Policy:
    """The policy of a file.

    Raises:  PolicyError where the file cannot be read, holds no policy or several, or holds a wrong
        one. What a Python file itself raises is not caught.
    """
    text, colon, name = str(path).partition(".py:")
    file = Path(f"{text}.py") if colon else Path(text)
    if file.suffix == ".json":
        return from_json(_read(file))
    if file.suffix != ".py":
        raise PolicyError(
            f"a policy file ends in .json or .py, got {file.name!r}.",
            hint="A method of the library is asked for by its name alone.",
        )
    found = _candidates(_module(file))
    if name:
        found = {n: made for n, made in found.items() if n == name}
    if len(found) != 1:
        names = ", ".join(found) or "none"
        raise PolicyError(
            f"expected one function or Policy{f' called {name!r}' if name else ''}, found {names}.",
            where=str(file),
            hint=f"Say which: {file}:NAME."
            if found
            else "Define a function that returns a Policy.",
        )
    ((chosen, made),) = found.items()
    return _policy(made, f"{file}, {chosen}")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as problem:
        raise PolicyError(f"the policy file {file} cannot be read: {problem}.") from problem


def _module(file: Path) -> ModuleType:
    _read(file)  # so that a missing file is refused like a missing JSON file
    spec = spec_from_file_location(f"synccache_policy_{file.stem}", file)
    assert spec is not None and spec.loader is not None, file
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _candidates(module: ModuleType) -> dict[str, object]:
    """Public functions that the file itself defines, and policies; what it imports does not count."""
    found: dict[str, object] = {}
    for name, value in vars(module).items():
        own = inspect.isfunction(value) and value.__module__ == module.__name__
        if not name.startswith("_") and (own or isinstance(value, Policy)):
            found[name] = value
    return found


def _policy(made: object, where: str) -> Policy:
    if inspect.isfunction(made):
        for parameter in inspect.signature(made).parameters.values():
            variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if parameter.default is parameter.empty and not variadic:
                raise PolicyError(f"{parameter.name!r} has no default.", where=where,
                                  hint="Give it one: the file is asked for a policy as it is.")  # fmt: skip
        made = made()
    if not isinstance(made, Policy):
        raise PolicyError(f"expected a Policy, got {made!r:.80}.", where=where)
    return made
