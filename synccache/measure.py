"""``measure``: signals of the policy language over the user's own sampling loop, and what they calibrate.

    seen = synccache.measure(model, loop, {"drift": relative_l1(output(blocks[0]), since=PREVIOUS)})
    seen["drift"][0]                       # guidance branch 0: one number a step, None: undefined

    numbers = synccache.calibrate_method(model, loop, "magcache")
    numbers.save("magcache.json")
    policy = MethodNumbers.load("magcache.json").policy(model, steps=50, threshold=0.12)

The loop runs uncached and exact. What is fitted is written down with what it was fitted on, and used
elsewhere it is refused with all that differs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from synccache import policies
from synccache.compiler import build_variant, checked_request
from synccache.errors import PlanError, PolicyError, StateError
from synccache.fx.cached_model import CachedModel
from synccache.fx.gate import Gate, Seen
from synccache.fx.planning import digest_of
from synccache.fx.taps import main_stream
from synccache.policies import dsl
from synccache.policies.dsl import PREVIOUS, Policy, Rule, Signal, blocks, branches

SCHEMA_VERSION = 1
DEGREE = 4  # of TeaCache's polynomials, as released
METHODS = ("magcache", "teacache")

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
    _, seen = _watched(model, run, signals, conditions, masks)
    return {
        name: _rows([s for s in seen if s.signal == signal]) for name, signal in signals.items()
    }


def _watched(
    model: nn.Module, run: Callable[[CachedModel], Any], signals: Mapping[str, Signal],
    conditions: Mapping[str, Sequence[str]] | None, masks: Mapping[str, Tensor] | None,
) -> tuple[CachedModel, list[Seen]]:  # fmt: skip
    """The model after the loop, and all that its gate saw."""
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
    run(watching)
    gates = [m for m in watching.graph_module.modules() if isinstance(m, Gate)]
    return watching, [seen for gate in gates for seen in gate.seen]


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
        method: teacache or magcache; numbers: its polynomial, highest power first, or its ratios.
        model: class name; parameters: digest of names, shapes and dtypes of its parameters.
        resolution: shape of the stream that blocks add to; steps, timesteps: of the measured run.
    """

    method: str
    numbers: tuple[float, ...]
    model: str
    parameters: str
    resolution: tuple[int, ...]
    steps: int

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise PlanError(f"no numbers are measured for {self.method!r}: {', '.join(METHODS)}.")

    def policy(self, model: nn.Module, *, steps: int, **arguments: Any) -> Policy:
        """The method with these numbers, for this model and a run of so many steps.

        MagCache's ratios may be stretched to other numbers of steps, as published; TeaCache's polynomial
        may not: it means changes between steps of this size.

        Raises:  PlanError naming all that differs from what was measured.
        """
        here: dict[str, object] = {"model": type(model).__name__, "parameters": digest_of(model)}
        here |= {"steps": steps} if self.method == "teacache" else {}
        wrong = [
            f"{name}: {getattr(self, name)!r} there, {value!r} here"
            for name, value in here.items()
            if getattr(self, name) != value
        ]
        if wrong:
            raise PlanError(
                f"the numbers of {self.method} were measured on something else: {'; '.join(wrong)}.",
                hint="Measure them again: synccache.calibrate_method(model, run, ...).",
            )
        name = "polynomial" if self.method == "teacache" else "ratios"
        return policies.method(self.method)(**{name: self.numbers, **arguments})

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
            data["numbers"] = tuple(map(float, data["numbers"]))
            data["resolution"] = tuple(map(int, data["resolution"]))
            found = MethodNumbers(**data)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as problem:
            raise PlanError(f"{path} holds no numbers of a method: {problem}.") from problem
        if version != SCHEMA_VERSION:
            raise PlanError(f"{path} has schema_version {version}; this reads {SCHEMA_VERSION}.")
        return found


def calibrate_method(
    model: nn.Module,
    run: Callable[[CachedModel], Any],
    method: str,
    *,
    probe: dsl.Probe = dsl.modulated(blocks[0]),  # noqa: B008 - frozen
    conditions: Mapping[str, Sequence[str]] | None = None,
) -> MethodNumbers:
    """The numbers of ``teacache`` or ``magcache`` for this model and sampling loop.

    teacache: the polynomial of degree 4 from the probe's relative change to the output's, both against the
    step before, least squares over all steps, guidance branches and clips. magcache: the mean ratio
    of the norms of consecutive whole-stack residuals at each step, of the first guidance branch.

    Args:
        probe: what ``policies.teacache(probe=...)`` will watch.

    Raises:
        PolicyError: another method. StateError: too few steps to fit.
    """
    if method not in METHODS:
        raise PolicyError(f"no numbers are measured for {method!r}.", hint=f"Use {METHODS}.")
    change = dsl.relative_l1(probe, since=PREVIOUS)
    signals: dict[str, Signal] = (
        {"in": change, "out": dsl.relative_l1(dsl.prediction, since=PREVIOUS)}
        if method == "teacache"
        else {"ratio": dsl.size_ratio(dsl.residual(branches), since=PREVIOUS)}
    )
    watched, seen = _watched(model, run, signals, conditions, None)
    rows = {n: _rows([s for s in seen if s.signal == signal]) for n, signal in signals.items()}
    steps = max((len(row) for runs in rows[next(iter(rows))].values() for row in runs), default=0)
    numbers = _fitted(rows["in"], rows["out"]) if method == "teacache" else _ratios(rows["ratio"])
    stream = watched.program.of_stream(main_stream(watched.program))[0].before
    return MethodNumbers(
        method=method, numbers=numbers, model=type(model).__name__, parameters=digest_of(model),
        resolution=tuple(stream.meta["shape"]), steps=steps,
    )  # fmt: skip


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
            where="calibrate_method(teacache)", hint="Run more steps or more clips.",
        )  # fmt: skip
    x, y = np.array(pairs).T
    return tuple(float(c) for c in np.polyfit(x, y, DEGREE))


def _ratios(rows: Mapping[Hashable, tuple[Row, ...]]) -> tuple[float, ...]:
    """By step the mean over clips, 1 on the first; of the first guidance branch, as published."""
    runs = next(iter(rows.values()), ())
    if not runs or len(runs[0]) < 2:
        raise StateError(
            "the sampling loop made fewer than two steps, so no ratio could be measured.",
            where="calibrate_method(magcache)", hint="Run the whole loop with the model it is given.",
        )  # fmt: skip
    steps = min(len(row) for row in runs)
    means = [
        float(np.mean([row[i] for row in runs if row[i] is not None])) for i in range(1, steps)
    ]
    return (1.0, *means)
