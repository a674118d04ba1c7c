"""Plans for Wan2.2-S2V-14B, without weights: `python benchmarks/plan_14b.py`.

Two sizes of the finished video, 80 frames, each under 24, 40 and 80 GB; and the shorter clip that the
model also makes, 48 frames, where 40 GB is enough. What does not fit prints its error with ways out.
"""

from __future__ import annotations

import time

import synccache
from synccache.compiler import checked_request, prepare
from synccache.fx.fake import fake_capture
from synccache.fx.planning import make_plan
from synccache.integrations.geometries import geometry
from synccache.planner.devices import DEVICES

SIZES = ((80, 480, 832), (80, 704, 1024), (48, 480, 832))
BUDGETS = ("24GB", "40GB", "80GB")


def main() -> None:
    shape = geometry("wan2.2-s2v-14b")
    model = shape.build()
    started = time.perf_counter()
    for frames, height, width in SIZES:
        recording = time.perf_counter()
        inputs = shape.inputs(frames=frames, height=height, width=width)
        captured = fake_capture(model, (), inputs, DEVICES["h100"])
        found = prepare(model, checked_request(shape.policy), captured, shape.guidance_branches)
        assert found.program is not None and found.problem is not None
        flops = sum(node.meta.get("flops", 0) for node in captured.graph.nodes)
        print(f"\n######## {frames} frames, {height}x{width}: {flops / 1e12:.0f} TFLOP a forward,")
        print(f"######## recorded and prepared in {time.perf_counter() - recording:.1f} s")
        for budget in BUDGETS:
            request = checked_request(shape.policy, mem_budget=budget)
            print(f"\n==== under {budget}\n")
            try:
                print(make_plan(model, request, found.program, found.matches, found.problem))
            except synccache.PlanError as refused:
                print(f"PlanError: {refused}")
    print(f"\nall together {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
