"""First-Block Cache as released in diffusers and as a policy: the same decisions and outputs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from loops import difference, tensors, timesteps
from real_models import Case, build
from torch import Tensor

import synccache
from synccache import policies

STEPS = 10
BRANCHES = ("cond", "uncond")


def slow_loop(
    case: Case, call: Callable[..., Any], context: Callable[[str], Any]
) -> list[tuple[Tensor, ...]]:
    """A denoising loop whose latents change a little at each step; both guidance branches."""
    found = []
    for k, timestep in enumerate(timesteps(STEPS)):
        for branch, name in enumerate(BRANCHES):
            _, kwargs = case.new_inputs(0, timestep, branch)
            kwargs["hidden_states"] = kwargs["hidden_states"] * (1 - 0.02 * k)
            with torch.no_grad(), context(name):
                found.append(tensors(call(**kwargs)))
    return found


@pytest.mark.parametrize("threshold", [0.25, 0.35])
def test_first_block_cache_decides_and_computes_as_in_diffusers(threshold: float) -> None:
    theirs, ours = build("wan_t2v"), build("wan_t2v")
    theirs.model.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    ran: list[bool] = []
    theirs.model.blocks[1].attn1.register_forward_hook(lambda *_: ran.append(True))
    letters: list[str] = []

    def counted(**kwargs: Any) -> Any:
        ran.clear()
        out = theirs.model(**kwargs)
        letters.append("C" if ran else "S")
        return out

    expected = slow_loop(theirs, counted, theirs.model.cache_context)
    compiled = synccache.compile(ours.model, policies.first_block_cache(threshold))
    found = slow_loop(ours, compiled, compiled.cache_context)
    decisions = compiled.stats().decisions

    assert decisions == {name: "".join(letters[i::2]) for i, name in enumerate(BRANCHES)}
    assert set(decisions["cond"][1:]) == {"C", "S"}
    assert difference(expected, found) <= 1e-6
