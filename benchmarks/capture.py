"""What recording, analysing and replaying a forward cost, beside the forward itself.

    python benchmarks/capture.py --pairs 15

On released classes whose forward takes about a second on one core (``wide_models.py``):

- recording: a whole ``capture()`` (without verification) over one forward of the same inputs;
- captured: a forward of ``policy="exact"`` with nothing kept, so that it does all that the model does,
  and as it is used, with step-invariant values kept; over the original's, run in turn;
- peak: the most bytes of tensors alive at once, beside weights and inputs (``tests/ledger.py``).

Ratios are medians over pairs that alternate in one process, of processor time: other programs on the
machine then weigh less. ``--wall`` takes wall-clock time instead. Analysing (tag, match, plan, rewrite) is timed
on a model of 60 blocks.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import wide_models
from ledger import Ledger
from wide_models import Wide

import synccache
from synccache.compiler import build_variant
from synccache.fx.capture import capture
from synccache.fx.inputs import flatten

DEEP = 60  # blocks


def ratio(
    first: Callable[[int], Any],
    second: Callable[[int], Any],
    pairs: int,
    clock: Callable[[], float],
) -> tuple[float, float, float]:
    """Median seconds of ``second``, and median and lowest of second / first, in turn."""
    ratios, seconds = [], []
    for i in range(pairs + 1):
        taken = {}
        for name in ("first", "second") if i % 2 else ("second", "first"):
            started = clock()
            (first if name == "first" else second)(i)
            taken[name] = clock() - started
        if i > 0:  # the first pair warms up
            ratios.append(taken["second"] / taken["first"])
            seconds.append(taken["second"])
    return statistics.median(seconds), statistics.median(ratios), min(ratios)


def peak_bytes(wide: Wide, call: Callable[..., Any]) -> int:
    """The most bytes alive at once while ``call`` runs; what waits for the collector counts."""
    args, kwargs = wide.inputs(0, 500.0, 0)
    given = [*wide.model.parameters(), *wide.model.buffers(), *flatten((args, kwargs))[0]]
    gc.collect()
    gc.disable()
    try:
        with Ledger(given) as book:
            call(*args, **kwargs)
    finally:
        gc.enable()
    return book.peak


def measure(wide: Wide, pairs: int, clock: Callable[[], float]) -> str:
    """One line of the table."""
    model = wide.model
    compiled = synccache.compile(model, "exact", conditions=wide.conditions, verify=False)
    for i in range(4):
        args, kwargs = wide.inputs(i, 900.0 - i // 2, i % 2)
        compiled(*args, **kwargs)

    def call(callee: Callable[..., Any], i: int) -> None:
        args, kwargs = wide.inputs(i, 800.0 - i // 2, i % 2)
        callee(*args, **kwargs)

    def afresh(i: int) -> None:
        compiled.reset()  # nothing is kept: every value is computed, as in the model
        call(compiled, i)

    def original(i: int) -> None:
        call(model, i)

    seconds, recording, _ = ratio(
        original, lambda i: call(lambda *a, **k: capture(model, a, k), i), pairs, clock
    )
    _, fresh, _ = ratio(original, afresh, pairs, clock)
    call(compiled, 0), call(compiled, 1)
    _, kept, _ = ratio(original, lambda i: call(compiled, i), pairs, clock)
    plain = peak_bytes(wide, model)
    recorded = peak_bytes(wide, lambda *a, **k: capture(model, a, k))
    captured = peak_bytes(wide, compiled)
    nodes = len(compiled.variant.captured.graph.nodes)
    return (
        f"| {wide.name} | {nodes} | {seconds / recording:.2f} | {recording:.3f} | {fresh:.3f} | {kept:.3f} "
        f"| {plain / 1e6:.1f} | {recorded / plain:.3f} | {captured / plain:.3f} |"
    )


def analysis_seconds(clock: Callable[[], float]) -> tuple[int, float]:
    """Operations of a 60-block Wan-S2V, and seconds to tag, match, plan and rewrite it."""
    wide = wide_models.wan_s2v(blocks=DEEP, heads=2, head=12, side=8)
    compiled = synccache.compile(wide.model, "asymmetric")
    args, kwargs = wide.inputs(0, 900.0, 0)
    _, captured = capture(wide.model, args, kwargs)
    times = []
    for _ in range(4):
        started = clock()
        build_variant(wide.model, compiled._request, captured, 1, "Deep")
        times.append(clock() - started)
    return len(captured.graph.nodes), statistics.median(times[1:])


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--wall", action="store_true", help="wall-clock instead of processor time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.perf_counter if options.wall else time.process_time
    print(
        "| model | operations | forward, s | recording | captured | captured, kept | peak, MB | recorded "
        "peak | captured peak |\n|---|---|---|---|---|---|---|---|---|"
    )
    with torch.no_grad():
        for make in (wide_models.wan_s2v, wide_models.wan_t2v, wide_models.ltx2):
            print(measure(make(), options.pairs, clock), flush=True)
        nodes, seconds = analysis_seconds(clock)
    print(f"\nTag, match, plan and rewrite {DEEP} blocks ({nodes} operations): {seconds:.2f} s.")


if __name__ == "__main__":
    main()
