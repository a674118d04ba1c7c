"""How a run tells its steps apart, and what that costs: with a word from the caller, nothing."""

from typing import Any

import pytest
import torch
from small_models import TOKENS, denoise, normal, talking, voices
from torch.overrides import TorchFunctionMode

import synccache
from synccache import policies
from synccache.errors import StateError
from synccache.fx import ops
from synccache.fx.progress import Counters, Level
from synccache.fx.runtime import Trajectory
from synccache.policies.dsl import Hold, Policy, Rule, Steps, blocks, noise, progress

MASK = Policy("mask", (Rule(blocks[1:], Steps("CSCSCS"), Hold()),))
EARLY = Policy("early", (Rule(blocks[1:], noise > 0.45, Hold()),))


class Transfers(TorchFunctionMode):
    """Counts reads of a tensor's value by Python: on a GPU each would wait for the device."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.__name__ in (*ops.READERS, "equal", "allclose", "nonzero", "cpu")
        return func(*args, **(kwargs or {}))


def denoise_named(model: Any, steps: int = 6, **said: bool) -> torch.Tensor:
    """small_models.denoise with diffusers' protocol around each call."""
    state = normal(0, 1, TOKENS, 4)
    for step in range(steps):
        level = 1000.0 * (1 - step / steps)
        place: dict[str, Any] = {"step_index": step, "num_inference_steps": steps}
        if said.get("sigma"):
            place["sigma"] = level / 1000
        found = []
        for name, voice in zip(("cond", "uncond"), voices(), strict=True):
            with model.cache_context(name, **place):
                found.append(model(state, torch.tensor([level]), voice))
        state = state - (2.0 * found[0] - found[1]) / steps
    return state


def test_with_the_number_of_calls_a_step_a_mask_waits_for_no_device() -> None:
    compiled = synccache.compile(talking(), MASK)
    expected = denoise(compiled)
    assert compiled.stats().syncs == 12

    compiled.begin(steps=6, branches=2)
    with Transfers() as transfers:
        found = denoise(compiled)

    assert torch.equal(expected, found)
    assert compiled.stats().decisions == {0: "CSCSCS", 1: "CSCSCS"}
    assert (compiled.stats().syncs, transfers.count) == (0, 0)


def test_counted_runs_follow_each_other() -> None:
    compiled = synccache.compile(talking(), MASK)
    compiled.begin(steps=6, branches=2)
    first, second = denoise(compiled), denoise(compiled)

    assert torch.equal(first, second)
    assert compiled.stats().decisions == {0: "CSCSCS", 1: "CSCSCS"}


def test_a_step_index_tells_steps_apart_and_a_smaller_one_begins_a_run() -> None:
    compiled = synccache.compile(talking(), MASK)
    expected = denoise(synccache.compile(talking(), MASK))
    denoise_named(compiled)
    with Transfers() as transfers:
        found = denoise_named(compiled)

    assert torch.equal(expected, found)
    assert compiled.stats().decisions == {"cond": "CSCSCS", "uncond": "CSCSCS"}
    assert (compiled.stats().syncs, transfers.count) == (0, 0)


@pytest.mark.parametrize(("sigma", "syncs"), [(False, 6), (True, 0)])
def test_a_noise_level_is_read_only_where_the_policy_asks_and_nobody_said_it(
    sigma: bool, syncs: int
) -> None:
    compiled = synccache.compile(talking(), EARLY)
    expected = denoise(synccache.compile(talking(), EARLY))
    found = denoise_named(compiled, sigma=sigma)

    assert torch.equal(expected, found)
    assert compiled.stats().decisions == {"cond": "CSSSCC", "uncond": "CSSSCC"}
    assert compiled.stats().syncs == syncs


def test_the_first_noise_level_is_kept_when_the_loop_writes_to_its_timestep() -> None:
    run, timestep = Trajectory(), torch.tensor([1000.0])
    run.enter(0, Level(timestep), "cond")
    timestep.sub_(600.0)
    run.enter(1, Level(timestep), "cond")

    assert Counters(run)["noise"] == pytest.approx(0.4)
    assert run.syncs == 2


@pytest.mark.parametrize("loop", [denoise, denoise_named])
def test_every_transfer_is_counted(loop: Any) -> None:
    compiled = synccache.compile(talking(), policies.first_block_cache(threshold=0.05))
    loop(compiled)
    compiled.reset()
    with Transfers() as transfers:
        loop(compiled)

    assert compiled.stats().syncs == transfers.count == (22 if loop is denoise else 10)


def test_steps_left_is_known_from_the_context() -> None:
    from synccache.policies.dsl import steps_left

    policy = Policy("last", (Rule(blocks[1:], steps_left > 0, Hold()),))
    compiled = synccache.compile(talking(), policy)
    denoise_named(compiled, steps=4)

    assert compiled.stats().decisions == {"cond": "CSSC", "uncond": "CSSC"}


def test_progress_without_any_timestep_is_refused() -> None:
    class Timeless(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.talking = talking()

        def forward(self, latents: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
            return self.talking(latents, latents.new_tensor([500.0]), audio)

    policy = Policy("late", (Rule(blocks[1:], progress > 0.5, Hold()),))
    compiled = synccache.compile(Timeless(), policy)
    with (
        pytest.raises(StateError, match="the policy asks for it"),
        compiled.cache_context("cond", step_index=0),
    ):
        compiled(normal(0, 1, TOKENS, 4), voices()[0])


@pytest.mark.parametrize(
    "said", [{"step_index": -1}, {"num_inference_steps": 0}, {"sigma": "high"}, {"timestep": True}]
)
def test_a_malformed_context_is_refused(said: dict[str, Any]) -> None:
    compiled = synccache.compile(talking(), MASK)
    with pytest.raises(StateError, match="cache_context"), compiled.cache_context("cond", **said):
        pass


def test_a_malformed_beginning_is_refused() -> None:
    compiled = synccache.compile(talking(), MASK)
    with pytest.raises(StateError, match=r"begin\(branches=...\) takes a positive integer, got 0"):
        compiled.begin(branches=0)
