"""What must hold for every method of the library, whatever it watches, skips and predicts.

Source: the invariants of the caching-policy reference, section 6.3; held tensors are counted in
test_held_tensors.py; true residuals, forced steps and what is left out here are in test_invariants_edges.py.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from generated_blocks import Audio, Spec
from generated_models import Generated, build
from library_cases import CASES, LONGER, RATIOS, STEPS
from loops import difference, outputs, same, tensors, timesteps
from test_worked_examples import Numbers

import synccache
from synccache import policies
from synccache.policies.dsl import (
    EACH_BRANCH,
    PREVIOUS,
    Hermite,
    Linear,
    Newton,
    Policy,
    Predictor,
    Rule,
    Steps,
    Taylor,
    TwoAnchor,
    blocks,
    branches,
    inf,
    output,
    relative_l1,
    step,
    whole,
)
from synccache.policies.prospects import static_letters

ROUNDING = 1e-5
NUMBER = 0.9  # the setting of each method: thresholds between always and never

every_method = pytest.mark.parametrize("name", CASES)
LED = [name for name in CASES if CASES[name](NUMBER).leader is not EACH_BRANCH]


def steps_of(name: str) -> int:
    return LONGER.get(name, STEPS)


@cache
def case() -> Generated:
    return build(Spec(seed=3, width=12, blocks=4, audio=Audio.OWN, tokens_per_frame=4))


@cache
def compiled(name: str) -> tuple[Policy, Any]:
    """The method's policy, and the model with it: one for all tests, so that state would leak."""
    policy = CASES[name](NUMBER)
    return policy, synccache.compile(case().model, policy)


def ran(name: str) -> tuple[Any, dict[Any, str]]:
    """Outputs and decisions of a run of its own."""
    model = compiled(name)[1]
    model.begin(steps=steps_of(name))
    found = outputs(model, case(), steps_of(name))
    return found, dict(model.stats().decisions)


# ---- thresholds

NEVER = {  # a strict threshold of 0
    "asymmetric": policies.asymmetric(0.0),
    "confidence_taylor": policies.confidence_taylor(0.0, warmup=2),
    "dbcache": policies.dbcache(0.0, front=1, warmup=2),
    "dicache": policies.dicache(0.0),
    "easycache": policies.easycache(0.0, warmup=2),
    "first_block_cache": policies.first_block_cache(0.0),
    "seacache": policies.seacache(0.0),
    "teacache": policies.teacache(0.0, polynomial=(1.0, 0.0)),
}
ALWAYS = {  # no threshold: what is computed then is forced
    "asymmetric": (policies.asymmetric(inf), "CSSSSSSS"),
    "confidence_taylor": (policies.confidence_taylor(inf, warmup=2), "CCSSSSSC"),
    "dbcache": (policies.dbcache(inf, front=1, warmup=2, max_skips=3), "CCSSSCSS"),
    "dicache": (policies.dicache(inf), "CSSSSSSS"),
    "easycache": (policies.easycache(inf, warmup=2), "CCSSSSSC"),
    "first_block_cache": (policies.first_block_cache(inf), "CSSSSSSS"),
    "magcache": (policies.magcache(inf, ratios=RATIOS, max_skips=3), "CSSSCSSS"),
    "seacache": (policies.seacache(inf), "CSSCSSCC"),
    "speca": (policies.speca(inf, shortest=1, longest=3), "CSSSCSSS"),
    "teacache": (policies.teacache(inf, polynomial=(1.0, 0.0)), "CSSSSSSC"),
}


def decided(policy: Policy, steps: int = STEPS) -> set[str]:
    model = synccache.compile(case().model, policy)
    model.begin(steps=steps)
    outputs(model, case(), steps)
    return set(model.stats().decisions.values())


@pytest.mark.parametrize("policy", NEVER.values(), ids=NEVER)
def test_with_a_threshold_of_zero_every_step_is_computed(policy: Policy) -> None:
    assert decided(policy) == {"C" * STEPS}


@pytest.mark.parametrize(("policy", "letters"), ALWAYS.values(), ids=ALWAYS)
def test_without_a_threshold_only_forced_steps_are_computed(policy: Policy, letters: str) -> None:
    assert decided(policy) == {letters}


# ---- features that do not change, and features that change evenly


def still(model: Any, steps: int) -> list[Any]:
    """Outputs on the same latents at timesteps that differ by one bit."""
    found, timestep = [], torch.tensor(500.0)
    for _ in range(steps):
        args, kwargs = case().new_inputs(0, float(timestep))
        with torch.no_grad():
            found.append(tensors(model(*args, **kwargs)))
        timestep = torch.nextafter(timestep, torch.tensor(0.0))
    return found


MOVING = ("planned", "clusca")  # one checks its timesteps, one spreads a token over its cluster


@pytest.mark.parametrize("name", sorted({*CASES} - {*MOVING}))
def test_features_that_do_not_change_are_predicted_exactly(name: str) -> None:
    """A skipped step with the inputs of the computed one equals it: head and time are fresh."""
    steps, model = steps_of(name), compiled(name)[1]
    model.begin(steps=steps)
    expected, found = still(case().model, steps), still(model, steps)

    # a gain is undefined where nothing changes; the second branch is made from the first
    if name not in ("easycache", "fastercache"):
        assert "S" in model.stats().decisions[0]
    assert difference(expected, found) <= ROUNDING


def even(policy: Policy) -> tuple[str, list[float], list[float]]:
    """Decisions, outputs and the model's own, where latents and all features are linear in the step."""
    model = Numbers((0.5, 1.0), (-0.25, 2.0), (0.75, -1.0))
    found, expected = [], []
    run = synccache.compile(model, policy)
    run.begin(steps=STEPS)
    for k, timestep in enumerate(timesteps(STEPS)):
        x = torch.full((1, 1, 1), 3.0 + 0.25 * k, dtype=torch.float64)
        arguments = x, torch.tensor([timestep]), torch.zeros(1, 1, 1, dtype=torch.float64)
        with torch.no_grad():
            found.append(float(run(*arguments)))
            expected.append(float(model(*arguments)))
    return run.stats().decisions[0], found, expected


@pytest.mark.parametrize(
    "reuse", [Linear(), Taylor(1), Taylor(2), Newton(1), Newton(3), Hermite(1, 0.5**0.5)]
)
def test_features_linear_in_the_step_are_predicted_exactly(reuse: Predictor) -> None:
    letters = "CCCCSSCS" if reuse.history > 2 else "CCSSCSSS"  # as many as it asks for
    run, found, expected = even(Policy("line", (Rule(branches, Steps(letters), reuse),)))

    assert run == letters
    assert found == pytest.approx(expected, rel=1e-12)


def test_two_anchors_are_exact_where_the_probe_is_as_linear_as_the_residual() -> None:
    moved = relative_l1(output(blocks[0]), since=PREVIOUS)
    when = Steps("CCSSCSSS") & (moved < inf) & (step >= 1)
    run, found, expected = even(Policy("two", (Rule(whole(branches), when, TwoAnchor(0.0, 9.0)),)))

    assert run == "CCSSCSSS"
    assert found == pytest.approx(expected, rel=1e-6)  # the ratio is measured in float32


# ---- state


@every_method
def test_a_second_run_equals_the_first(name: str) -> None:
    (first, decisions), (second, again) = ran(name), ran(name)

    assert decisions == again
    assert "S" in "".join(decisions.values())
    assert same(first, second)


@pytest.mark.parametrize("name", LED)
def test_one_guidance_branch_decides_for_all_where_it_leads(name: str) -> None:
    decisions = ran(name)[1]

    assert len(decisions) == 2
    assert len(set(decisions.values())) == 1


@pytest.mark.parametrize("name", sorted({*CASES} - {*LED, "fastercache"}))  # second from first
def test_guidance_branches_in_another_order_are_decided_alike(name: str) -> None:
    model = compiled(name)[1]
    found: list[dict[str, list[Any]]] = []
    for order in ((0, 1), (1, 0)):
        found.append({"first": [], "second": []})
        model.begin(steps=steps_of(name))
        for k, timestep in enumerate(timesteps(steps_of(name))):
            for branch in order:
                args, kwargs = case().new_inputs(k, timestep, branch)
                key = ("first", "second")[branch]
                with model.cache_context(key), torch.no_grad():
                    found[-1][key].append(tensors(model(*args, **kwargs)))
        found[-1]["letters"] = sorted(model.stats().decisions.items())

    one, other = found
    assert one["letters"] == other["letters"]
    assert same(one["first"], other["first"])
    assert same(one["second"], other["second"])


@every_method
def test_interleaved_trajectories_equal_separate_ones(name: str) -> None:
    model, steps = compiled(name)[1], steps_of(name)
    separate, together = [], ([], [])
    for seed in (0, 50):
        model.begin(steps=steps)
        separate.append(outputs(model, case(), steps, branches=1, seed=seed))
    for key in (0, 1):
        with model.trajectory(f"{name} {key}"):
            model.begin(steps=steps)
    for k, timestep in enumerate(timesteps(steps)):
        for key, seed in enumerate((0, 50)):
            args, kwargs = case().new_inputs(seed + k, timestep)
            with model.trajectory(f"{name} {key}"), torch.no_grad():
                together[key].append(tensors(model(*args, **kwargs)))

    assert all(map(same, separate, together))


def masks(name: str) -> list[str | None]:
    """The letters of each rule that measures nothing, None for one that does."""
    return [static_letters(rule, steps_of(name)) for rule in CASES[name](NUMBER).rules]


STATIC = [name for name in CASES if None not in masks(name)]


@pytest.mark.parametrize("name", STATIC)
def test_a_static_policy_equals_its_mask_bit_for_bit(name: str) -> None:
    policy, letters = compiled(name)[0], masks(name)
    rules = (replace(r, when=Steps(mask)) for r, mask in zip(policy.rules, letters, strict=True))
    masked = synccache.compile(case().model, replace(policy, rules=tuple(rules)))
    masked.begin(steps=steps_of(name))
    found = outputs(masked, case(), steps_of(name))
    expected, decisions = ran(name)

    assert decisions == dict(masked.stats().decisions)
    assert same(expected, found)


def test_published_schedules_are_static_and_published_gates_are_not() -> None:
    assert {"fora", "magcache", "taylorseer", "hicache", "planned", "delta_dit"} <= {*STATIC}
    assert not {*STATIC} & {*NEVER}
