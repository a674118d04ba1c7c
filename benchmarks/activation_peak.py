"""The predicted activation peak beside measured ones: `python benchmarks/activation_peak.py`.

For each released class of the test table, in KB of intermediates (weights and inputs not counted):

- predicted: from shapes alone, nothing was run (from a recording where the forward reads a value);
- ledger: the storages alive at once while the model ran, from a dispatch mode;
- allocator: the same from torch's CPU allocator, so with what kernels take for themselves;
- planned, run: everything but the weights, as a plan says it (activations, held residuals, probe,
  step-invariant values) and as a compiled run of two computed, a skipped and a computed step holds it.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from ledger import Ledger
from shapes_of import on_meta
from table_models import NAMES, TableCase, build

import synccache
from synccache.fx.capture import capture
from synccache.fx.cost import activation_peak_bytes
from synccache.fx.fake import fake_capture
from synccache.fx.inputs import flatten
from synccache.planner.devices import DEVICES
from synccache.policies import step_mask
from synccache.policies.dsl import blocks

KB = 1000


def known(case: TableCase, arguments: object) -> list[torch.Tensor]:
    tables = [v for m in case.model.modules() for v in vars(m).values()]
    weights = [*case.model.parameters(), *case.model.buffers()]
    return [*weights, *flatten((tables, arguments))[0]]


def ledger_peak(case: TableCase, call: Callable[..., object], timestep: float) -> int:
    args, kwargs = case.inputs(0, timestep)
    gc.collect()
    with torch.no_grad(), Ledger(known(case, (args, kwargs))) as book:
        call(*args, **kwargs)
    return book.peak


def allocator_peak(case: TableCase) -> int:
    args, kwargs = case.inputs(0, 900.0)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        case.model(*args, **kwargs)
    events = [e for e in run.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def predicted(case: TableCase) -> tuple[int, str]:
    try:
        return activation_peak_bytes(fake_capture(*on_meta(case), DEVICES["a100"])), "shapes"
    except synccache.CaptureError:
        case = build(case.name)
        args, kwargs = case.inputs(0, 900.0)
        with torch.no_grad():
            return activation_peak_bytes(capture(case.model, args, kwargs)[1]), "recording"


def compiled_run(case: TableCase) -> tuple[int, int]:
    """What a plan says without weights, and the most that a run holds."""
    mask = step_mask("CCSC", skip=blocks[1:])
    example = case.inputs(0, 950.0)
    compiled = synccache.compile(case.model, mask, conditions=case.conditions, example=example)
    steps = [case.inputs(0, timestep) for timestep in (900.0, 800.0, 700.0, 600.0)]
    gc.collect()
    with torch.no_grad(), Ledger(known(case, steps)) as book:
        for args, kwargs in steps:
            compiled(*args, **kwargs)
    memory = compiled.plan.memory
    return memory.total_bytes - memory.weights_bytes, book.peak


def main() -> None:
    columns = ("predicted", "ledger", "allocator", "planned", "run")
    print(
        f"{'model':18}"
        + "".join(f"{c:>11}" for c in columns)
        + "   predicted / ledger, run / planned"
    )
    for name in NAMES:
        case = build(name)
        measured, allocated = ledger_peak(case, case.model, 900.0), allocator_peak(case)
        planned, run = compiled_run(build(name))
        found, source = predicted(build(name))
        row = "".join(f"{v / KB:11.1f}" for v in (found, measured, allocated, planned, run))
        print(
            f"{name:18}{row}   {found / measured:.4f}, {run / planned:.3f} (from {source})",
            flush=True,
        )


if __name__ == "__main__":
    main()
