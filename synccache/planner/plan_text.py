"""A plan as text for people: one table of regions, one of memory, one of alternatives."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from synccache.planner.problem import MEASURED, DriftSource
from synccache.planner.quantities import counted, format_bytes

if TYPE_CHECKING:
    from synccache.planner.plan import Alternative, Memory, Plan, PlannedRegion

_WIDTH = 100
_SKIPS_WIDTH, _STORED_WIDTH, _PREDICTOR_WIDTH = 26, 16, 14
_NEIGHBOURS = 3
"""How many alternatives are shown on either side of the choice, besides the first and the last."""
_LONG = 1000
"""Drift from here on is written with an exponent, so that the column keeps its width."""

_SOURCES = {
    DriftSource.ASSUMED: (
        "not measured; few absorbed audio branches, evenly spread, are assumed to be best"
    ),
    DriftSource.WARM_UP: "relative change of a residual, summed over steps; measured on warm-up steps",
    DriftSource.CALIBRATION: "relative change of a residual, summed over steps; measured over a calibration run",
}

_Rows = Sequence[Sequence[str]]


def plan_text(plan: Plan) -> str:
    """The whole plan in at most 100 columns."""
    parts = [_heading(plan), _regions(plan), _memory(plan), _alternatives(plan)]
    return "\n\n".join(part for part in parts if part)


def difference(mine: Mapping[str, object], other: Mapping[str, object]) -> str:
    """`name: mine -> other` for each leaf of two nested records that differs, in my order."""
    left, right = dict(_leaves("", mine)), dict(_leaves("", other))
    lines = [
        f"{name}: {left.get(name, 'absent')} -> {right.get(name, 'absent')}"
        for name in dict.fromkeys((*left, *right))
        if left.get(name, "absent") != right.get(name, "absent")
    ]
    return "\n".join(lines) or "no difference"


def _heading(plan: Plan) -> str:
    lines = [f"Plan of policy {plan.policy!r} for {plan.model}"]
    if not plan.regions:
        lines.append("No region is skipped: every step computes every branch.")
        return _paragraphs(lines)
    lines.append(
        f"On a skipped step held residuals replace {counted(len(plan.regions), 'region')}; "
        f"computed between them: {counted(len(plan.kept_lives), 'live group')}."
    )
    if plan.mask:
        lines.append(f"Steps, C computed and S skipped, nothing measured: {plan.mask}.")
    absorbed = (
        f"{plan.absorbed_count} of {counted(plan.live_total, 'audio branch', 'audio branches')}"
    )
    lines.append(f"Absorbed into regions, so not refreshed on a skipped step: {absorbed}.")
    if plan.cache_ratio is not None:
        lines.append(f"Cache ratio: {plan.cache_ratio:g}.")
    return _paragraphs(lines)


def _regions(plan: Plan) -> str:
    if not plan.regions:
        return ""
    header = ("#", "skips", "held/branch", "stored as", "predictor", "drift", "saves")
    rows = [line for region in plan.regions for line in _region_lines(region)]
    held = format_bytes(sum(region.held_bytes for region in plan.regions))
    rows.append(("", "together", held, "", "", _drift(plan.drift), _seconds(plan.seconds_saved)))
    notes = [
        "held/branch: for each guidance branch. saves: on one skipped forward of one branch.",
        f"drift: {_SOURCES[plan.drift_source]}.",
        *_choice_notes(plan),
        *_estimated(plan),
    ]
    return "\n".join([*aligned(header, rows, left=(1, 3, 4)), *notes])


def _choice_notes(plan: Plan) -> list[str]:
    """What a choice of storage costs, and how good it is proven to be; nothing without a choice."""
    if len(plan.storages) == 1:
        return []
    lost = sum(region.seconds_lost for region in plan.regions)
    names = ", ".join(storage.name for storage in plan.storages)
    return [
        f"storages to choose from: {names};",
        f"storage loses {_seconds(lost)} of a skipped forward.",
        f"{plan.solved.proof.value}, gap {plan.solved.gap:.2%}, after {plan.solved.seconds:.2f} s.",
    ]


def _estimated(plan: Plan) -> list[str]:
    """A line for seconds that were not measured."""
    if plan.seconds_source == MEASURED:
        return []
    return _wrapped(f"seconds: {plan.seconds_source}.", _WIDTH)


def _region_lines(region: PlannedRegion) -> _Rows:
    """The row of a region: its first line has the figures, the others continue long texts."""
    skips = [*_wrapped(region.name, _SKIPS_WIDTH), *_wrapped(region.labels, _SKIPS_WIDTH)]
    if region.absorbed:
        skips += _wrapped(f"absorbs {', '.join(region.absorbed)}", _SKIPS_WIDTH)
    columns = (
        [str(region.index)],
        skips,
        [format_bytes(region.held_bytes)],
        _wrapped(f"{region.dtype}, {region.place}", _STORED_WIDTH),
        _wrapped(region.predictor, _PREDICTOR_WIDTH),
        [_drift(region.drift)],
        [_seconds(region.seconds_saved)],
    )
    return list(zip_longest(*columns, fillvalue=""))


def _memory(plan: Plan) -> str:
    memory = plan.memory
    branches = counted(memory.guidance_branches, "guidance branch", "guidance branches")
    rows = [
        ("weights", format_bytes(memory.weights_bytes), ""),
        ("activations, peak", format_bytes(memory.activation_bytes), ""),
        ("residuals", format_bytes(memory.residual_bytes), branches),
        *_away(memory),
        ("step-invariant values", format_bytes(memory.invariant_bytes), branches),
        ("shared by branches", format_bytes(memory.shared_bytes), "probe, masks, constants"),
        ("together", format_bytes(memory.total_bytes), _against_budget(plan)),
    ]
    return "\n".join(aligned(("memory on the device", "size", ""), rows, left=(0, 2)))


def _away(memory: Memory) -> list[tuple[str, str, str]]:
    """Rows for what comes back from the host, where anything lies there."""
    if not memory.host_bytes:
        return []
    host = f"of {format_bytes(memory.host_bytes)} kept in main memory"
    return [("copies from the host", format_bytes(memory.staging_bytes), host)]


def _against_budget(plan: Plan) -> str:
    if plan.budget_bytes is None:
        return "no budget given"
    free = plan.budget_bytes - plan.memory.total_bytes
    return f"of a budget of {format_bytes(plan.budget_bytes)}, {format_bytes(free)} free"


def _alternatives(plan: Plan) -> str:
    if not plan.frontier:
        return ""
    shown = _shown(plan)
    header = ("", "regions", "caches", "absorbed audio", "drift")
    rows = [
        (
            "->" if row.cuts == plan.cuts else "",
            str(row.segments),
            format_bytes(row.cache_bytes),
            str(row.absorbed_count),
            _drift(row.drift),
        )
        for row in shown
    ]
    notes = []
    if len(shown) < len(plan.frontier):
        notes.append(f"({len(plan.frontier) - len(shown)} more in plan.frontier)")
    if all(row.cuts != plan.cuts for row in shown):
        notes.append("(the regions chosen are none of these: those of least drift do not fit)")
    title = "Least drift for each number of regions, budget aside:"
    return "\n".join([title, *aligned(header, rows, left=(0,)), *notes])


def _shown(plan: Plan) -> list[Alternative]:
    chosen = len(plan.regions)
    return [
        row
        for row in plan.frontier
        if abs(row.segments - chosen) <= _NEIGHBOURS or row in (plan.frontier[0], plan.frontier[-1])
    ]


def aligned(header: Sequence[str], rows: _Rows, *, left: Sequence[int]) -> list[str]:
    """Columns padded to their widest cell, two spaces apart; numbers to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]
    return [lines[0], "-" * min(_WIDTH, max(map(len, lines))), *lines[1:]]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ")


def _paragraphs(lines: Sequence[str]) -> str:
    return "\n".join(textwrap.fill(line, _WIDTH, subsequent_indent="  ") for line in lines)


def _drift(drift: float | None) -> str:
    if drift is None:
        return "-"
    return f"{drift:.4f}" if drift < _LONG else f"{drift:.2e}"


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _leaves(path: str, value: object) -> list[tuple[str, object]]:
    if isinstance(value, Mapping):
        inner = [(f"{path}.{key}" if path else str(key), entry) for key, entry in value.items()]
    elif isinstance(value, tuple) and any(isinstance(entry, Mapping) for entry in value):
        inner = [(f"{path}[{index}]", entry) for index, entry in enumerate(value)]
    else:
        return [(path, value)]
    return [leaf for name, entry in inner for leaf in _leaves(name, entry)]
