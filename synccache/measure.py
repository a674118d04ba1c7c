"""``measure``: signals of the policy language over the user's own sampling loop, and what they calibrate.

    seen = synccache.measure(model, loop, {"drift": relative_l1(output(blocks[0]), since=PREVIOUS)})
    seen["drift"][0]                       # guidance branch 0: one number a step, None: undefined

    numbers = synccache.calibrate(model, loop, "magcache")
    numbers.save("magcache.json")
    policy = MethodNumbers.load("magcache.json").policy(threshold=0.12)

The loop runs uncached and exact. What is fitted is written down with what it was fitted on; the policy
made of it carries that with it, and used elsewhere it is refused with all that differs.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor, nn

from synccache import policies
from synccache.compiler import build_variant, checked_request
from synccache.errors import PlanError, PolicyError, StateError
from synccache.fx.cached_model import CachedModel
from synccache.fx.curvature import curvature
from synccache.fx.gate import Gate, Seen
from synccache.fx.planning import digest_of
from synccache.fx.taps import main_stream
from synccache.policies import dsl
from synccache.policies.dsl import (
    PREVIOUS,
    MeasuredOn,
    Policy,
    Rule,
    Signal,
    blocks,
    branches,
)
from synccache.watched import Ran, alike, watched_loop

SCHEMA_VERSION = 2
DEGREE = 4  # of TeaCache's polynomials, as released
METHODS = MappingProxyType(
    {"magcache": "ratios", "omnicache": "curvature", "teacache": "polynomial"}
)
"""What is measured, by the name of the method's argument that takes it."""

Row = tuple[float | None, ...]


def measure(
    model: nn.Module,
    run: Callable[[CachedModel], Any],
    signals: Mapping[str, Signal],
    *,
    conditions: Mapping[str, Sequence[str]] | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> dict[str, dict[Hashable, tuple[Row, ...]]]:
    """By name and guidance branch, one row a trajectory with one number a step.

    None where a signal is undefined. Every step is computed, so ``LAST_COMPUTED`` is ``PREVIOUS``.

    Args:
        run: the caller's sampling loop; it is called with a model to use in place of ``model``.

    Raises:
        PolicyError: what is to be measured is no signal. StateError: the loop never called the model.
    """
    _, seen, _ = _watched(model, run, signals, conditions, masks)
    return {
        name: _rows([s for s in seen if s.signal == signal]) for name, signal in signals.items()
    }


def _watched(
    model: nn.Module, run: Callable[[CachedModel], Any], signals: Mapping[str, Signal],
    conditions: Mapping[str, Sequence[str]] | None, masks: Mapping[str, Tensor] | None,
    *, title: str = "measuring", latents: bool = False,
) -> tuple[CachedModel, list[Seen], list[Ran]]:  # fmt: skip
    """The model after the loop, all that its gate saw, and the trajectories."""
    if not signals:
        raise PolicyError("measure() takes at least one signal.")
    when: dsl.Condition | None = None
    for name, signal in signals.items():
        if not isinstance(signal, Signal):
            raise PolicyError(f"measure() takes signals, but {name!r} is {signal!r}.")
        one = (dsl.lagged(signal) if dsl.late(signal) else signal) >= 0.0
        when = one if when is None else when & one
    assert when is not None
    policy = Policy("measure", (Rule(dsl.nothing, when),))
    request = checked_request(policy, conditions=conditions, masks=masks)
    watching = CachedModel(model, request, build_variant)
    with watched_loop(watching, title, latents=latents) as ran:
        run(watching)
    gates = [m for m in watching.graph_module.modules() if isinstance(m, Gate)]
    return watching, [seen for gate in gates for seen in gate.seen], ran


def _rows(seen: Iterable[Seen]) -> dict[Hashable, tuple[Row, ...]]:
    """By guidance branch the trajectories' rows; a new one begins where the step does not rise."""
    found: dict[Hashable, list[dict[int, float | None]]] = {}
    for one in seen:
        runs = found.setdefault(one.branch, [{}])
        if runs[-1] and one.step <= max(runs[-1]):
            runs.append({})
        value = float(one.value) if isinstance(one.value, Tensor) else one.value
        runs[-1][one.step] = value
    return {
        branch: tuple(tuple(row.get(i) for i in range(max(row) + 1)) for row in rows)
        for branch, rows in found.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodNumbers:
    """Numbers that a published method needs, and what they were measured on.

    Attributes:
        method: teacache, magcache or omnicache; numbers: its polynomial, highest power first, its
            ratios, or the curvature of the trajectory at each step.
        probe: what TeaCache's polynomial was fitted for, as it is written; "" for the others.
    """

    method: str
    numbers: tuple[float, ...]
    measured_on: MeasuredOn
    probe: str = ""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise PlanError(f"no numbers are measured for {self.method!r}: {', '.join(METHODS)}.")

    def policy(self, **arguments: Any) -> Policy:
        """The method with these numbers; ``arguments`` are its other ones, e.g. ``threshold=0.1``.

        Compiled for another model or resolution, or run with another sampler, other timesteps or
        another number of steps, it is refused. MagCache's ratios alone may be stretched over other
        numbers of steps, as published; TeaCache's polynomial means changes between steps of this size.

        Raises:  PlanError: TeaCache is to watch another probe than was measured, or the numbers are
            given a second time.
        """
        name = METHODS[self.method]
        if name in arguments:
            raise PlanError(f"{name}= is what was measured; leave it out.")
        make, measured_on = policies.method(self.method), self.measured_on
        if self.method == "teacache":
            default = inspect.signature(make).parameters["probe"].default
            probe = repr(arguments.get("probe", default))
            if probe != self.probe:
                raise PlanError(
                    f"the polynomial was measured on something else: probe: {self.probe} there, {probe} "
                    "here.", hint="Pass the probe that was measured, or calibrate(..., probe=...).",
                )  # fmt: skip
        if self.method == "magcache":
            measured_on = replace(measured_on, steps=None, timesteps=())
        made: Policy = make(**{name: self.numbers, **arguments})
        return replace(made, measured_on=(measured_on,))

    def save(self, path: str | Path) -> None:
        """Writes a JSON file."""
        data = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        Path(path).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> MethodNumbers:
        """Reads what ``save`` wrote.  Raises: PlanError for anything else."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            version = data.pop("schema_version")
            if version != SCHEMA_VERSION:
                raise PlanError(
                    f"{path} has schema_version {version}; this reads {SCHEMA_VERSION}.",
                    hint="Calibrate again.",
                )
            origin = data.pop("measured_on")
            origin |= {n: tuple(origin[n]) for n in ("resolution", "timesteps")}
            data["numbers"] = tuple(map(float, data["numbers"]))
            return MethodNumbers(measured_on=MeasuredOn(**origin), **data)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, PolicyError) as problem:
            raise PlanError(f"{path} holds no numbers of a method: {problem}.") from problem


def method_numbers(
    model: nn.Module,
    run: Callable[[CachedModel], Any],
    method: str,
    *,
    probe: dsl.Probe = dsl.modulated(blocks[0]),  # noqa: B008 - frozen
    conditions: Mapping[str, Sequence[str]] | None = None,
) -> MethodNumbers:
    """What ``calibrate`` gives for a method of ``METHODS``; see there."""
    change = dsl.relative_l1(probe, since=PREVIOUS)
    watched_by: dict[str, dict[str, Signal]] = {
        "teacache": {"in": change, "out": dsl.relative_l1(dsl.prediction, since=PREVIOUS)},
        "magcache": {"ratio": dsl.size_ratio(dsl.residual(branches), since=PREVIOUS)},
        "omnicache": {"latent": dsl.relative_l1(dsl.latent, since=PREVIOUS)},  # the loop is watched
    }
    signals = watched_by[method]
    bends = method == "omnicache"
    watched, seen, ran = _watched(
        model, run, signals, conditions, None, title=f"calibrating {method}", latents=bends
    )
    rows = {n: _rows([s for s in seen if s.signal == signal]) for n, signal in signals.items()}
    if method == "teacache":
        numbers = _fitted(rows["in"], rows["out"])
    else:
        numbers = _bends(ran) if bends else _ratios(rows["ratio"])
    stream = watched.program.of_stream(main_stream(watched.program))[0].before
    last = alike(ran, f"calibrate({method}) on {type(model).__name__}")
    return MethodNumbers(
        method=method, numbers=numbers, probe=repr(probe) if method == "teacache" else "",
        measured_on=MeasuredOn(
            type(model).__name__, digest_of(model), tuple(stream.meta["shape"]), last.steps,
            last.sampler, last.known_timesteps,
        ),
    )  # fmt: skip


def _bends(ran: Sequence[Ran]) -> tuple[float, ...]:
    """By step the mean over clips of how much the trajectory bends there."""
    rows = [curvature(one.latents) for one in ran]
    return tuple(float(np.mean(at)) for at in zip(*rows, strict=True))


def _fitted(
    before: Mapping[Hashable, tuple[Row, ...]], after: Mapping[Hashable, tuple[Row, ...]]
) -> tuple[float, ...]:
    pairs = [
        (x, y)
        for branch in before
        for xs, ys in zip(before[branch], after[branch], strict=True)
        for x, y in zip(xs, ys, strict=True)
        if x is not None and y is not None
    ]
    if len(pairs) <= DEGREE:
        raise StateError(
            f"{len(pairs)} changes were measured; a polynomial of degree {DEGREE} needs {DEGREE + 1}.",
            where="calibrate(teacache)", hint="Run more steps or more clips.",
        )  # fmt: skip
    x, y = np.array(pairs).T
    return tuple(float(c) for c in np.polyfit(x, y, DEGREE))


def _ratios(rows: Mapping[Hashable, tuple[Row, ...]]) -> tuple[float, ...]:
    """By step the mean over clips, 1 on the first; of the first guidance branch, as published."""
    runs = next(iter(rows.values()), ())
    if not runs or len(runs[0]) < 2:
        raise StateError(
            "the sampling loop made fewer than two steps, so no ratio could be measured.",
            where="calibrate(magcache)", hint="Run the whole loop with the model it is given.",
        )  # fmt: skip
    steps = min(len(row) for row in runs)
    means = [
        float(np.mean([row[i] for row in runs if row[i] is not None])) for i in range(1, steps)
    ]
    return (1.0, *means)
