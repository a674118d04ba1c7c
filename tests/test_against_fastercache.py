"""FasterCache of diffusers and ours: the same decisions, and outputs to within rounding.

Theirs takes both guidance branches in one batch, unconditional first; ours is called once for each,
conditional first, as its other branch is predicted from it.
"""

from typing import Any

import pytest
import torch
from diffusers import FasterCacheConfig
from loops import difference, tensors
from peers import STEPS, inputs, letters, run_ours
from table_models import build

from synccache import policies
from synccache.policies.dsl import TEXT, branches

SELF = branches.attention - branches.reading(TEXT)
ROUNDING = 2e-5  # of float32: products of two rows a batch and of one round otherwise
BATCHED = ("hidden_states", "encoder_hidden_states", "timestep")


def theirs(*, distilled: bool) -> tuple[str, str, list[tuple[torch.Tensor, ...]]]:
    """Letters of the whole second branch and of an attention, and (conditional, other) outputs."""
    case, now = build("wan_t2v"), [0.0]
    case.model.enable_cache(FasterCacheConfig(
        spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(-1, 681),
        unconditional_batch_skip_range=5, unconditional_batch_timestep_skip_range=(-1, 641),
        low_frequency_weight_update_timestep_range=(99, 901), alpha_low_frequency=1.1,
        high_frequency_weight_update_timestep_range=(-1, 301), alpha_high_frequency=1.1,
        spatial_attention_block_identifiers=("blocks",), tensor_format="BCFHW",
        attention_weight_callback=lambda _: 0.5, is_guidance_distilled=distilled,
        current_timestep_callback=lambda: now[0],
    ))  # fmt: skip
    sizes: list[int] = []
    case.model.get_submodule("blocks.0.ffn").register_forward_pre_hook(
        lambda _, given: sizes.append(len(given[0]))
    )

    def call(**kwargs: Any) -> Any:
        now[0] = float(kwargs["timestep"][0])
        return case.model(**kwargs)

    found = []
    with letters(case.model.get_submodule("blocks.1.attn1.to_q")) as watched:
        watching = watched(call)
        for k in range(STEPS):
            conditional, other = (inputs(case, k, branch, STEPS) for branch in range(2))
            both = {n: torch.cat([other[n], conditional[n]]) for n in BATCHED}
            with torch.no_grad():
                out = watching(**{**conditional, **({} if distilled else both)})
            (out,) = tensors(out)
            found.append((out,) if distilled else tuple(reversed(out.chunk(2))))
    return "".join("C" if size == 2 else "S" for size in sizes), watching.letters, found


def test_both_branches_decide_and_compute_as_in_diffusers() -> None:
    second, attention, outputs = theirs(distilled=False)
    ours = run_ours(build("wan_t2v"), policies.fastercache(attention=SELF))

    assert {"C", "S"} == set(second) == set(attention)
    assert {"cond": attention, "uncond": second} == ours.decisions
    flat = [(t,) for pair in outputs for t in pair]
    assert difference(flat, ours.outputs) <= ROUNDING


def test_distilled_guidance_extrapolates_attention_as_in_diffusers() -> None:
    """Theirs takes an attention on the first step in the window for skipped even if nothing is cached
    yet, and fails on such a run; here the window begins later."""
    _, attention, outputs = theirs(distilled=True)
    policy = policies.fastercache(
        attention=SELF, branch_window=(-1, 681), branch_interval=STEPS + 1
    )
    ours = run_ours(build("wan_t2v"), policy, branches=("cond",))

    assert {"cond": attention} == ours.decisions
    assert difference(outputs, ours.outputs) <= ROUNDING


@pytest.mark.parametrize("interval", [2, 3])
def test_attention_is_computed_on_steps_that_compute_both_branches(interval: int) -> None:
    policy = policies.fastercache(attention=SELF, attention_interval=interval)
    ours = run_ours(build("wan_t2v"), policy)

    pairs = list(zip(ours.decisions["cond"], ours.decisions["uncond"]))
    assert ("S", "C") not in pairs
    assert ("S", "S") in pairs
