"""The worked examples of per-module methods: gates fresh, modules held; a draft checked one step late.

Numbers: caching-policy reference, sections 2.1 and 2.6 (worked out by hand there).
"""

import pytest
import torch
from torch import Tensor, nn

import synccache
from synccache import policies
from synccache.policies.dsl import measured_signals
from synccache.policies.evaluate import Memory, Now


class Gated(nn.Module):
    """x += gate_a(t) * a(x); x += gate_m(t) * m(x), with gates t/1000 and 2 - t/1000."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])])
        for layer in self.blocks[0]:
            nn.init.ones_(layer.weight)
            nn.init.constant_(layer.bias, -3.0)  # x - 3
        self.double().requires_grad_(False)

    def forward(self, latents: Tensor, timestep: Tensor) -> Tensor:
        gate = (timestep / 1000)[:, None, None]
        attend, mix = self.blocks[0]
        x = latents + gate * attend(latents)
        return x + (2 - gate) * mix(x)


def test_fora_applies_fresh_gates_to_held_module_outputs() -> None:
    compiled = synccache.compile(Gated(), policies.fora(3))
    compiled.begin(steps=3)

    def out(x: float, timestep: float) -> float:
        latents = torch.full((1, 1, 1), x, dtype=torch.float64)
        return float(compiled(latents, torch.tensor([timestep], dtype=torch.float64)))

    found = [out(4.0, 1000.0), out(9.0, 900.0), out(4.0, 800.0)]

    assert compiled.stats().decisions[0] == "CSC"
    assert found[0] == pytest.approx(7.0)  # modules gave 1 and 2
    assert found[1] == pytest.approx(12.1)  # 9 + 0.9 * 1 + 1.1 * 2


def test_speca_decides_by_the_error_of_the_step_before_and_by_its_limits() -> None:
    policy = policies.speca(0.5, rate=0.1, floor=0.1, shortest=2, longest=4)
    when, steps = policy.rules[0].when, 10
    (error,) = measured_signals(when)
    measured = {3: 0.3, 7: 0.05, 8: 0.2}  # by the step on which the last block was also run exactly
    letters, streak, memory = "", 0, Memory()
    for step in range(steps):
        counters = {"step": step, "skips": streak, "steps": steps, "skipped": letters.count("S")}
        now = Now(counters, {error: measured.get(step - 1)}, memory)
        skip = step > 0 and now.holds(when) is True
        letters, streak = letters + ("S" if skip else "C"), streak + 1 if skip else 0

    assert letters == "CSSSCSSSSC"  # step 4 by its error, step 9 by the longest draft
