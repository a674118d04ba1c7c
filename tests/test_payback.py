"""Payback equals an integrator that owns the loop; planned policies run as masks with constants."""

from collections.abc import Callable

import pytest
import torch
from small_models import TOKENS, Talking, normal, talking, voices
from torch import Tensor

import synccache
from synccache import policies
from synccache.errors import PolicyError, StateError
from synccache.fx.cached_model import CachedModel
from synccache.planner.samplers import Sampler, sampler_row
from synccache.policies import dsl
from synccache.policies.dsl import Fitted, Hold, Linear, Payback, Policy, Rule, Steps
from synccache.policies.fitted import Constants, Mix, longest_gap

LETTERS = "CSSCCSSSCSC"
SIGMAS = tuple(1.0 - 0.8 * i / len(LETTERS) for i in range(len(LETTERS))) + (0.0,)
TIMESTEPS = tuple(1000.0 * s for s in SIGMAS[:-1])


def mixes(letters: str = LETTERS) -> tuple[Mix, ...]:
    """Some weights on the last two computed steps."""
    found = []
    for step, letter in enumerate(letters):
        anchors = tuple(i for i in range(step) if letters[i] == "C")[-2:]
        if letter == "S":
            found.append((step, anchors, (1.0,) if len(anchors) == 1 else (-0.3, 1.3)))
    return tuple(found)


def plan(strength: float, degree: int = 2, skip: dsl.Skip = dsl.branches) -> Policy:
    constants = Constants(
        letters=LETTERS, timesteps=TIMESTEPS, coefficients=mixes(), strength=strength, degree=degree
    )
    return policies.planned(constants, skip=skip)


Step = Callable[[int, dict[int, Tensor], dict[int, Tensor]], Tensor]


def stepping(sampler: Sampler) -> Step:
    """x[n + 1] from all states and outputs so far."""

    def advance(n: int, states: dict[int, Tensor], outputs: dict[int, Tensor]) -> Tensor:
        row = sampler_row(sampler, SIGMAS, n)
        parts = [states[j] * w for j, w in row.state.items()]
        return sum(parts + [outputs[j] * w for j, w in row.output.items()])

    return advance


def sampled(
    model: torch.nn.Module, sampler: Sampler = Sampler.EULER, seed: int = 0
) -> dict[int, Tensor]:
    """All states of a loop with guidance 2 that knows nothing of caching."""
    states, outputs, advance = {0: normal(seed, 1, TOKENS, 4)}, {}, stepping(sampler)
    if isinstance(model, CachedModel):
        model.begin(sigmas=SIGMAS, sampler=sampler)
    for n, timestep in enumerate(TIMESTEPS):
        given, without = (model(states[n], torch.tensor([timestep]), v) for v in voices())
        outputs[n] = 2.0 * given - without
        states[n + 1] = advance(n, states, outputs)
    return states


def owned(strength: float, degree: int, sampler: Sampler, whole: bool = False) -> dict[int, Tensor]:
    """The same by an integrator that owns the loop: at a computed step it replaces the outputs of the
    skipped steps before it by better ones and integrates again; each was made at the state that the
    loop was in, and so is the computed one. ``whole``: what is held is the output less the latents.
    """
    residual, headed = (whole_residual, whole_headed) if whole else (block_residual, block_headed)
    model, advance, table = talking(), stepping(sampler), {s: (a, w) for s, a, w in mixes()}
    held: list[dict[int, Tensor]] = [{}, {}]
    visited, outputs, parts = {}, {}, {}
    states = {0: normal(0, 1, TOKENS, 4)}
    for n, letter in enumerate(LETTERS):
        visited[n] = states[n]
        for k, voice in enumerate(voices()):
            if letter == "C":
                held[k][n] = residual(model, visited[n], TIMESTEPS[n], voice)
                added = held[k][n]
            else:
                anchors, weights = table[n]
                added = sum(w * held[k][a] for a, w in zip(anchors, weights, strict=True))
            parts[n, k] = headed(model, visited[n], added)
        if letter == "C":
            last = max((i for i in range(n) if LETTERS[i] == "C"), default=n)
            for t in range(last + 1, n):
                for k in range(2):
                    nodes = tuple(held[k])[-degree - 1 :]
                    weights = Payback(degree=degree).weights(nodes, t)
                    added = sum(w * held[k][a] for a, w in zip(nodes, weights, strict=True))
                    better = headed(model, visited[t], added)
                    parts[t, k] = (1 - strength) * parts[t, k] + strength * better
                outputs[t] = 2.0 * parts[t, 0] - parts[t, 1]
                states[t + 1] = advance(t, states, outputs)
        outputs[n] = 2.0 * parts[n, 0] - parts[n, 1]
        states[n + 1] = advance(n, states, outputs)
    return states


def block_residual(model: Talking, latents: Tensor, timestep: float, voice: Tensor) -> Tensor:
    time, heard = model.time(torch.tensor([[[timestep / 1000]]])), model.listen(voice)
    start = hidden = model.embed(latents)
    for block, injector in zip(model.blocks, model.injectors, strict=True):
        hidden = block(hidden, time)
        hidden = hidden + injector(hidden, heard)
    return hidden - start


def block_headed(model: Talking, latents: Tensor, added: Tensor) -> Tensor:
    return model.head(model.embed(latents) + added)


def whole_residual(model: Talking, latents: Tensor, timestep: float, voice: Tensor) -> Tensor:
    return model(latents, torch.tensor([timestep]), voice) - latents


def whole_headed(model: Talking, latents: Tensor, added: Tensor) -> Tensor:
    return latents + added


@pytest.mark.parametrize("sampler", Sampler, ids=lambda s: s.value)
@pytest.mark.parametrize(("strength", "degree"), [(1.0, 2), (0.5, 1)])
def test_payback_ends_where_an_integrator_that_owns_the_loop_ends(
    sampler: Sampler, strength: float, degree: int
) -> None:
    compiled = synccache.compile(talking(), plan(strength, degree))
    found, expected = sampled(compiled, sampler), owned(strength, degree, sampler)
    plain = sampled(synccache.compile(talking(), plan(0.0)), sampler)

    last = len(LETTERS)
    assert torch.allclose(found[last], expected[last], rtol=0, atol=2e-5)
    assert not torch.allclose(plain[last], expected[last], rtol=0, atol=2e-4)


def test_the_same_in_the_space_of_latents_holds_less() -> None:
    hidden = synccache.compile(talking(), plan(0.5))
    latent = synccache.compile(talking(), plan(0.5, skip=dsl.network))
    found, expected = sampled(latent), owned(0.5, 2, Sampler.EULER, whole=True)
    sampled(hidden)

    assert torch.allclose(found[len(LETTERS)], expected[len(LETTERS)], rtol=0, atol=2e-5)
    assert latent.stats().planned_bytes < hidden.stats().planned_bytes


def test_a_planned_policy_without_payback_is_its_mask_with_its_weights() -> None:
    found = sampled(synccache.compile(talking(), plan(0.0)))

    expected = owned(0.0, 1, Sampler.EULER)
    assert torch.allclose(found[len(LETTERS)], expected[len(LETTERS)], rtol=0, atol=1e-5)


def test_a_planned_run_waits_for_the_device_only_to_read_the_timestep() -> None:
    compiled = synccache.compile(talking(), plan(0.5))
    sampled(compiled)
    found = compiled.stats()

    assert found.syncs == 2 * len(LETTERS)
    assert set(found.decisions.values()) == {LETTERS}
    assert found.forced == 0


def test_making_skipped_steps_again_is_counted_as_work() -> None:
    plain = synccache.compile(talking(), plan(0.0))
    paying = synccache.compile(talking(), plan(0.5))
    sampled(plain)
    sampled(paying)

    assert paying.stats().executed_fraction == pytest.approx(plain.stats().executed_fraction)
    assert paying.stats().flops_fraction > plain.stats().flops_fraction


def test_a_second_run_and_two_interleaved_ones_equal_runs_alone() -> None:
    alone = [sampled(synccache.compile(talking(), plan(0.5)), seed=s)[len(LETTERS)] for s in (0, 1)]
    compiled = synccache.compile(talking(), plan(0.5))
    assert torch.equal(sampled(compiled, seed=0)[len(LETTERS)], alone[0])
    assert torch.equal(sampled(compiled, seed=1)[len(LETTERS)], alone[1])

    states = [normal(s, 1, TOKENS, 4) for s in (0, 1)]
    for key in (0, 1):
        with compiled.trajectory(key):
            compiled.begin(sigmas=SIGMAS)
    for n, timestep in enumerate(TIMESTEPS):
        for key in (0, 1):
            with compiled.trajectory(key):
                given, without = (
                    compiled(states[key], torch.tensor([timestep]), v) for v in voices()
                )
            output = 2.0 * given - without
            states[key] = states[key] * 1.0 + output * (SIGMAS[n + 1] - SIGMAS[n])

    assert all(torch.equal(a, b) for a, b in zip(states, alone, strict=True))


def test_what_is_held_reaches_what_the_plan_allows_and_no_more() -> None:
    compiled = synccache.compile(talking(), plan(0.5))
    seen: list[int] = []
    state, heard = normal(0, 1, TOKENS, 4), voices()
    compiled.begin(sigmas=SIGMAS)
    for n, timestep in enumerate(TIMESTEPS):
        given, without = (compiled(state, torch.tensor([timestep]), v) for v in heard)
        state = state + (2.0 * given - without) * (SIGMAS[n + 1] - SIGMAS[n])
        seen.append(compiled.stats().bytes_held)

    assert max(seen) == compiled.stats().planned_bytes


def test_latents_that_the_loop_changes_in_place_are_remembered_as_they_were() -> None:
    compiled = synccache.compile(talking(), plan(0.5))
    compiled.begin(sigmas=SIGMAS)
    state = normal(0, 1, TOKENS, 4)
    for n, timestep in enumerate(TIMESTEPS):
        given, without = (compiled(state, torch.tensor([timestep]), v) for v in voices())
        state += (2.0 * given - without) * (SIGMAS[n + 1] - SIGMAS[n])

    expected = sampled(synccache.compile(talking(), plan(0.5)))[len(LETTERS)]
    assert torch.allclose(state, expected, rtol=0, atol=1e-6)


def test_payback_without_noise_levels_is_refused_with_the_way_out() -> None:
    compiled = synccache.compile(talking(), plan(0.5))

    with pytest.raises(StateError, match="needs the noise levels") as refused:
        compiled(normal(0, 1, TOKENS, 4), torch.tensor([1000.0]), voices()[0])
    assert "begin(sigmas=" in str(refused.value)


def test_payback_for_an_unknown_sampler_is_refused() -> None:
    compiled = synccache.compile(talking(), plan(0.5))

    with pytest.raises(StateError, match="takes a Sampler, got 'UniPCMultistepScheduler'"):
        compiled.begin(sigmas=SIGMAS, sampler="UniPCMultistepScheduler")


@pytest.mark.parametrize(
    ("sigmas", "says"),
    [
        ((1.0, 0.5, 0.7, 0.0), r"sigmas\[1\] is 0.5 and sigmas\[2\] is 0.7"),
        ((1.0,), "0 steps|1 step"),
    ],
)
def test_noise_levels_that_do_not_fall_are_refused(sigmas: tuple[float, ...], says: str) -> None:
    with pytest.raises(StateError, match=says):
        synccache.compile(talking(), plan(0.0)).begin(sigmas=sigmas)


def test_a_run_at_other_timesteps_than_planned_is_refused() -> None:
    compiled = synccache.compile(talking(), plan(0.0))
    compiled(normal(0, 1, TOKENS, 4), torch.tensor([1000.0]), voices()[0])

    with pytest.raises(StateError, match="step 2 of 11 is at timestep 700, it was planned for 927"):
        compiled(normal(0, 1, TOKENS, 4), torch.tensor([700.0]), voices()[0])


def test_payback_needs_a_schedule_that_is_known() -> None:
    rule = Rule(dsl.branches, dsl.skips < 2, Linear())

    with pytest.raises(PolicyError, match=r"condition that is Steps\(\.\.\.\) alone"):
        Policy("mine", (rule,), payback=Payback(0.5))


def test_payback_works_with_any_predictor_of_computed_steps() -> None:
    policy = Policy("mine", (Rule(dsl.branches, Steps(LETTERS), Hold()),), payback=Payback(1.0))
    compiled = synccache.compile(talking(), policy)
    without = synccache.compile(talking(), policy.with_(payback=None))
    exact = sampled(talking())[len(LETTERS)]

    last = len(LETTERS)
    error, paid = ((sampled(m)[last] - exact).norm() for m in (without, compiled))
    assert paid < 0.5 * error


def test_where_other_steps_were_computed_the_line_through_the_last_two_is_used() -> None:
    fitted = Fitted(((5, (0, 2), (-0.4, 1.4)),))

    assert fitted.weights((0, 2), 5) == (-0.4, 1.4)
    assert fitted.weights((0, 3), 5) == Linear().weights((0, 3), 5)
    assert fitted.weights((1, 0, 2), 5) == (0.0, -0.4, 1.4)


def test_weights_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(PolicyError, match=r"step 5 must sum to 1, got 0\.9"):
        Fitted(((5, (0, 2), (-0.4, 1.3)),))


def test_a_planned_policy_needs_one_timestep_a_letter() -> None:
    with pytest.raises(PolicyError, match="one timestep for each of 2 letters"):
        Steps("CS", (1.0,))


def test_the_longest_gap_is_one_that_ends_in_a_computed_step() -> None:
    assert longest_gap(Steps("CSSCSCSSSS")) == 2


def test_a_report_says_the_payback_and_not_every_weight() -> None:
    compiled = synccache.compile(talking(), plan(0.5))
    sampled(compiled)

    assert "constant weights for 6 skipped steps, each of at most 2 tensors" in compiled.explain()
    assert "payback of 0.5 of the error, interpolated with degree 2" in compiled.explain()
    assert "mixes=" not in compiled.explain()
