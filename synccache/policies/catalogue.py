"""What the library offers, read from its methods' own files and policies: for lists and for docs.

for entry in catalogue():
    print(entry.name, entry.line, entry.needs, entry.holds)
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import MappingProxyType

from synccache.policies import LIBRARY, dsl, method
from synccache.policies.dsl import Policy, Rule
from synccache.policies.fitted import Constants

__all__ = ["Entry", "catalogue", "entry", "holds", "needs", "source_of"]

# Arguments for the methods that cannot be made without any, to say what such a policy holds.
EXAMPLES: Mapping[str, tuple[object, ...]] = MappingProxyType({
    "delta_dit": (2,),
    "omnicache": ((9.0, 0.1, 0.2, 9.0), 1),
    "planned": (
        Constants(
            letters="CSC", timesteps=(1000.0, 600.0, 200.0), coefficients=((1, (0,), (1.0,)),),
            strength=0.5,
        ),
    ),
    "step_mask": ("CSSCS",),
})  # fmt: skip

LONG = 8  # a table with more numbers is listed by its length


@dataclass(frozen=True, slots=True)
class Entry:
    """One method of the library.

    Attributes:
        line: what it does, in one line.
        arguments: its parameters with their defaults, as written in a call.
        needs: what a user must have or give before it can run.
        holds: tensors held between steps, for each guidance branch.
        source: where it was published, and what was read.
    """

    name: str
    line: str
    arguments: str
    needs: tuple[str, ...]
    holds: str
    source: str


def catalogue() -> tuple[Entry, ...]:
    """Every method, in the order of its name."""
    return tuple(entry(name) for name in sorted(LIBRARY))


def entry(name: str) -> Entry:
    """One method.  Raises: PolicyError for an unknown name."""
    made = method(name)
    text = inspect.getdoc(sys.modules[made.__module__]) or ""
    first, _, _ = text.partition("\n")
    policy = made(*EXAMPLES.get(name, ()))
    missing = [f"{p.name}=..." for p in _parameters(made) if p.default is p.empty]
    return Entry(
        name=name,
        line=first.partition(": ")[2],
        arguments=", ".join(_written(p) for p in _parameters(made)),
        needs=(*missing, *needs(policy)),
        holds=holds(policy),
        source=_paragraph(text, "Source:"),
    )


def source_of(name: str) -> str:
    """The text of a method's file.  Raises: PolicyError for an unknown name."""
    return inspect.getsource(sys.modules[method(name).__module__])


def _parameters(made: Callable[..., Policy]) -> list[inspect.Parameter]:
    return list(inspect.signature(made).parameters.values())


def _written(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return f"{parameter.name}=..."
    if isinstance(parameter.default, tuple) and len(parameter.default) > LONG:
        return f"{parameter.name}=({len(parameter.default)} numbers)"
    return f"{parameter.name}={parameter.default!r}"


def _paragraph(text: str, word: str) -> str:
    """The text behind this word, up to the next word or the end, on one line."""
    inside = text.partition(f"\n{word}")[2].splitlines()
    taken: list[str] = []
    for line in inside:
        if line[:1].strip() and taken:
            break
        taken.append(line.strip())
    return " ".join(taken).strip()


# ---- read from the policy itself

_HELD: Mapping[type, str] = MappingProxyType(
    {
        dsl.Segments: "residual a segment",
        dsl.Values: "value a run",
        dsl.Whole: "residual a stream",
        dsl.Modules: "output a branch, before its gate",
        dsl.Network: "model output, of the sample's size",
    }
)
_PROBES = MappingProxyType(
    {
        "Output": "reference of a stream's size",
        "Entering": "reference of a stream's size",
        "Residual": "reference of a stream's size",
        "Modulated": "reference of a stream's size",
        "ModuleOutput": "reference of a stream's size",
        "Latent": "reference of the sample's size",
        "Prediction": "reference of the sample's size",
        "TimeEmbedding": "reference of a few numbers",
        "Given": "reference of what is given",
    }
)


def holds(policy: Policy) -> str:
    """Tensors that a policy holds for each guidance branch, in words.

    ``2 residuals a run`` is twice the stream for each run of skipped branches; how many runs there are
    depends on the model, and how many bytes a tensor has: ``compiled.plan`` says both.
    """
    found = [part for rule in policy.rules for part in _held_by(rule)]
    return "; ".join(dict.fromkeys(found)) or "nothing"


def _held_by(rule: Rule) -> Iterator[str]:
    kind = type(rule.skip)
    word = _HELD.get(kind, "residual a run")
    if isinstance(rule.skip, dsl.Values) and isinstance(rule.skip.of, dsl.Network):
        word = _HELD[dsl.Network]
    yield _counted(rule.reuse.history, word)
    if isinstance(rule.reuse, dsl.FromSibling):
        yield "1 model output of the step's first branch"
    if isinstance(rule.tokens, dsl.OnePerCluster):
        yield f"{rule.tokens.clusters} centroids, and a label a token"
    if isinstance(rule.tokens, dsl.TopTokens):
        yield "an age a token and MLP"
    references: dict[str, set[tuple[object, object]]] = {}
    for part in _parts(rule.when):
        probe = getattr(part, "probe", None)
        if type(probe).__name__ in _PROBES:
            which = references.setdefault(_PROBES[type(probe).__name__], set())
            which.add((probe, getattr(part, "since", None)))
    for size, found in references.items():
        yield _counted(sum([_history(since) for _, since in found]), size)


def _history(since: object) -> int:
    predictor = getattr(since, "predictor", None)
    return predictor.history if isinstance(predictor, dsl.Predictor) else 1


def _counted(count: int, word: str) -> str:
    first, _, rest = word.partition(" ")
    return f"{count} {first}{'s' if count > 1 else ''} {rest}".strip()


_STEPS = "the number of steps: begin(steps=...)"
_CALIBRATED = "numbers measured on the model: calibrate(...)"
_NEEDS = MappingProxyType(
    {
        "Table": _STEPS,
        "Decay": _STEPS,
        "Share": _STEPS,
        "Polynomial": _CALIBRATED,
        "Deviation": _CALIBRATED,
        "Fitted": _CALIBRATED,
        "FromSibling": "two guidance branches",
    }
)
_COUNTED = MappingProxyType({"steps": _STEPS, "steps_left": _STEPS})


def needs(policy: Policy) -> tuple[str, ...]:
    """What must be known or given before a policy can run, in words."""
    found = []
    for part in _parts(policy):
        if isinstance(part, dsl.Reading):
            found.append(f"an input marked {part.tag}")
        elif isinstance(part, dsl.MaskWeight):
            found.append(f"mask {part.name!r}; without one it is found from the audio branches")
        elif isinstance(part, dsl.Counter) and part.name in _COUNTED:
            found.append(_COUNTED[part.name])
        elif type(part).__name__ == "Given":
            found.append(f"give({getattr(part, 'name', '')}=...) before each step")
        elif type(part).__name__ in _NEEDS:
            found.append(_NEEDS[type(part).__name__])
    return tuple(dict.fromkeys(found))


def _parts(item: object) -> Iterator[object]:
    """Everything a policy is made of, itself first."""
    yield item
    if isinstance(item, tuple):
        for each in item:
            yield from _parts(each)
    elif is_dataclass(item):
        for field in fields(item):
            yield from _parts(getattr(item, field.name))
