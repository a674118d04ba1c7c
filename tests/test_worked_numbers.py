"""The numbers inside the published worked examples: what each gate measures, step by step, and forecasts.

A gate's number is read from where its decision turns: computed with the threshold just below it, skipped
with the threshold just above. Numbers: caching-policy reference, sections 1 to 3 (worked out by hand).
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from loops import timesteps
from test_policies_whole_stack import SIGNALS, numbers, ran, scripted
from test_worked_examples import Numbers
from torch import nn

import synccache
from synccache import policies
from synccache.policies import dsl
from synccache.policies.dsl import Policy, Rule, Signal, Steps, Taylor, branches
from synccache.policies.prospects import static_letters
from synccache.policies.thresholds import thresholds

PERSON = {"person": torch.tensor([1.0, 0.0])}


def decided(policy: Policy, latents: list[Any], model: nn.Module, masks: Any = None) -> str:
    compiled = synccache.compile(model, policy, masks=masks)
    compiled.begin(steps=len(latents))
    for timestep, values in zip(timesteps(len(latents)), latents, strict=True):
        x = torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1)
        with torch.no_grad():
            compiled(x, torch.tensor([timestep]), torch.zeros(1, 1, 1, dtype=torch.float64))
    return str(compiled.stats().decisions[0])


def watched(policy: Policy) -> Signal:
    """What the policy's first threshold is compared with."""
    return thresholds(policy.rules[0].when)[0].left


def check(
    policy: Policy, letters: str, expected: list[float | None], latents: list[Any], model: nn.Module,
    *, within: float = 6e-7, signal: Signal | None = None, masks: Any = None,
) -> None:  # fmt: skip
    """On step k, after these letters, the signal is expected[k], to within half of its last digit."""
    signal = watched(policy) if signal is None else signal
    (rule,) = policy.rules
    for k, number in enumerate(expected):
        if number is None:
            continue
        turned = []
        for limit in (number - within, number + within):
            ahead, here = Steps(letters[:k] + "C"), Steps("C" * k + "S")
            when = ahead | (here & (signal < limit))
            changed = replace(policy, rules=(replace(rule, when=when),))
            turned.append(decided(changed, latents, model, masks)[k])
        assert turned == ["C", "S"], f"on step {k} the signal is not {number}"


# ---- what gates measure


@pytest.mark.parametrize(
    ("polynomial", "letters", "expected"),
    [
        ((1.0, 0.0), "CSSSCC", [None, 0.04, 0.088077, 0.097251, 0.151797]),
        ((2.0, 0.0, 0.01), "CSSCSC", [None, 0.0132, 0.027823, 0.037991, 0.01595]),
    ],
)
def test_teacaches_sum(
    polynomial: tuple[float, ...], letters: str, expected: list[float | None]
) -> None:
    policy = policies.teacache(polynomial=polynomial)

    check(policy, letters, expected, SIGNALS, numbers())


def test_magcaches_sum_of_deviations() -> None:
    policy = policies.magcache(ratios=(1.0, 0.98, 0.97, 0.95, 0.99, 0.9))
    expected = [None, 0.02, 0.0694, 0.16633, 0.01, 0.119]

    check(policy, "CSSCSS", expected, SIGNALS, numbers())


EASY = [10, 9, 8, 7.2, 6.5, 5.9, 5.4, 5.3]


def easy_model() -> nn.Module:
    outputs = [2, 2.2, 2.5, 0, 3.0, 0, 3.3, 0]  # at computed steps
    added = [v - z for v, z in zip(outputs, EASY, strict=True)]
    return scripted(EASY, added, [0.0] * 8, [0.0] * 8)


def test_easycaches_sum_of_expected_changes() -> None:
    check(
        policies.easycache(), "CCCSCSCC", [None, None, None, 0.096, 0.18, 0.066667], EASY,
        easy_model(),
    )  # fmt: skip


def test_easycaches_gain_is_renewed_by_computed_steps_alone() -> None:
    gains = [None, None, 0.2, 0.3, 0.3, 0.333333, 0.333333, 0.272727]
    gain = dsl.gain(dsl.prediction, dsl.latent)

    check(policies.easycache(), "CCCSCSCC", gains, EASY, easy_model(), signal=gain)


def test_dicaches_sum_of_the_probes_changes() -> None:
    latents, probes = [10, 9.8, 9.6, 9.4, 9.2, 9.0], [11, 11, 10.9, 10.8, 10.6, 10.5]
    front = [p - x for p, x in zip(probes, latents, strict=True)]
    model = scripted(latents, front, [1.0] * 6, [0.0] * 6)
    expected = [None, None, 0.009091, 0.018265, 0.036784, 0.009434]

    check(policies.dicache(), "CCSSCS", expected, latents, model)


def test_first_block_caches_change_since_the_anchor() -> None:
    model = Numbers((-0.5, 7.0), (1.0, -4.0), (0.0, 0.0))
    latents, expected = [10, 9.8, 9.7, 9.5, 9.4], [None, 0.05, 0.075, 0.125, 0.022222]

    check(policies.first_block_cache(), "CSSCS", expected, latents, model)
    check(policies.dbcache(front=1), "CSSCS", expected, latents, model)


def test_confidence_taylors_forecast_errors() -> None:
    probes, ends = [1.0, 1.1, 1.21, 1.4, 1.5], [5, 5.4, 0, 6.6, 0]
    rest = [y - p for y, p in zip(ends, probes, strict=True)]
    model = scripted([0.0] * 5, probes, rest, [0.0] * 5)
    policy = policies.confidence_taylor(probe_order=1, order=1)
    expected = [None, None, 0.008264, 0.071429, 0.033333]

    check(policy, "CCSCS", expected, [0.0] * 5, model)


@pytest.mark.parametrize(
    ("inside", "letters", "expected"),
    [
        (1.0, "CSSCS", [None, 0.04, 0.08423, 0.13948, 0.01222]),
        (2.0, "CSCSS", [None, 0.05714, 0.11525, 0.07663, 0.09086]),
    ],
)
def test_the_weighted_probes_sum(inside: float, letters: str, expected: list[float | None]) -> None:
    probes = [[4, 6], [4.4, 6], [4.8, 6.06], [5.4, 6.06], [5.5, 6.1]]
    policy = policies.asymmetric(0.1, inside=inside)
    model = Numbers((0.0, 0.0), (1.0, 0.0), (1.0, 0.0))

    assert decided(policy, probes, model, PERSON) == letters
    check(policy, letters, expected, probes, model, within=6e-6, masks=PERSON)


# ---- SpeCa: a draft checked one step late


def drafted(e3: float, e7: float, e8: float = 0.2) -> tuple[str, list[float]]:
    """A stream of 1, and a last block whose exact value misses the draft by these shares.

    On step 2 it misses by far: too few drafts stand behind that step for the block to be run.
    """
    rear = [
        0.0,
        0.0,
        98.0,
        1 / (1 + e3) - 1,
        0.0,
        7.0,
        7.0,
        1 / (1 + e7) - 1,
        1 / (1 + e8) - 1,
        0.0,
    ]
    model = scripted([1.0] * 10, [0.0] * 10, [0.0] * 10, rear)
    policy = policies.speca(0.5, rate=0.1, floor=0.1, shortest=2, longest=4, order=1, first=1)
    compiled, found = ran(policy, [1.0] * 10, model)
    return compiled.stats().decisions[0], found


def test_speca_keeps_a_bad_draft_and_computes_the_step_after_it() -> None:
    letters, found = drafted(0.3, 0.05)

    assert letters == "CSSSCSSSSC"  # step 4 by its error, step 9 by the longest draft
    assert found == pytest.approx([1.0] * 10)


def test_specas_threshold_falls_to_its_floor() -> None:
    assert drafted(0.199053, 0.05)[0][4] == "S"
    assert drafted(0.199056, 0.05)[0][4] == "C"
    assert drafted(0.3, 0.09999)[0] == "CSSSCSSSSC"  # 0.079245 without the floor
    assert drafted(0.3, 0.10001)[0] == "CSSSCSSSCS"


# ---- forecasts, through compiled modules

SQUARES = [t**2 / 3 + 1 for t in range(9)]


def forecast(policy: Policy) -> tuple[str, list[float]]:
    """A model whose one branch makes t^2 / 3 + 1, and whose output is that."""
    model = scripted([0.0] * 9, SQUARES, [0.0] * 9, [0.0] * 9)
    compiled, found = ran(policy, [0.0] * 9, model)
    return compiled.stats().decisions[0], found


def test_taylorseer_forecasts_every_module() -> None:
    letters, found = forecast(policies.taylorseer(3, order=2, first=1))

    assert letters == "CSSCSSCSS"
    assert found[1:3] == pytest.approx([1.0, 1.0])
    assert found[4:6] == pytest.approx([5.0, 6.0])
    assert found[7:] == pytest.approx([16 + 1 / 3, 20 + 1 / 3], rel=1e-6)


def test_taylor_on_uneven_anchors_is_not_a_divided_difference() -> None:
    masked = policies.step_mask("CCSSCSSSS", skip=dsl.modules(branches), reuse=Taylor(2))
    _, found = forecast(masked)

    assert found[5] == pytest.approx(19 / 3 + 5 / 3 + 4 / 9 / 2, rel=1e-6)  # 8.2222; truly 9.3333
    assert found[5] == pytest.approx(8.2222, abs=5e-5)


@pytest.mark.parametrize(
    ("scale", "expected"), [(0.5, [14.416667, 16.166667]), (0.71, [16.027356, 20.068423])]
)
def test_hicache_forecasts_every_module(scale: float, expected: list[float]) -> None:
    letters, found = forecast(policies.hicache(3, order=2, scale=scale, first=1))

    assert letters == "CSSCSSCSS"
    assert found[7:] == pytest.approx(expected, abs=2e-6)


def test_freqca_holds_the_mean_and_forecasts_the_difference() -> None:
    compiled = synccache.compile(Numbers((0.0, 0.0), (0.0, 0.0), (0.0, 0.0)), policies.freqca(
        2, order=1, first=1
    ))  # fmt: skip
    compiled.begin(steps=4)
    for timestep, tokens in zip(timesteps(4), ([4, 2], [9, 9], [6, 2], [9, 9]), strict=True):
        x = torch.tensor(tokens, dtype=torch.float64).reshape(1, 2, 1)
        with torch.no_grad():
            out = compiled(x, torch.tensor([timestep]), torch.zeros(1, 1, 1, dtype=torch.float64))

    assert compiled.stats().decisions[0] == "CSCS"
    assert out.flatten().tolist() == pytest.approx([6.5041, 1.4959], abs=1e-6)


def test_fastercaches_forecasts_take_the_place_of_what_they_forecast() -> None:
    masked = policies.step_mask("CCSS", skip=dsl.modules(branches), reuse=dsl.Fixed((-0.5, 1.5)))
    model = scripted([0.0] * 4, [3.0, 3.4, 9.0, 9.0], [0.0] * 4, [0.0] * 4)

    assert ran(masked, [0.0] * 4, model)[1] == pytest.approx([3.0, 3.4, 3.6, 3.7])


def test_toca_and_duca_alternate_between_their_steps() -> None:
    every = [policies.toca(5).rules[0].tokens.every, policies.duca(5).rules[0].tokens.every]

    assert every == [1, 2]
    assert static_letters(policies.duca(5).rules[0], 6) == "CSSSSC"


def test_diffusers_first_gap_is_one_step() -> None:
    when = (dsl.step >= 3) & ~dsl.every(dsl.step, 5, 4)

    assert static_letters(Rule(branches, when), 14) == "CCCSCSSSSCSSSS"


# ---- the person's model: live audio, and what its segments drift


def test_asymmetric_runs_audio_on_the_approximated_stream() -> None:
    model = Numbers((0.0, 0.0), (0.4, 0.0), (0.0, 4.6))
    compiled = synccache.compile(model, policies.asymmetric(0.1, inside=1.0), masks={
        "person": torch.tensor([1.0])
    })  # fmt: skip
    compiled.begin(steps=2)
    found = []
    for timestep, value in zip(timesteps(2), (10.0, 9.5), strict=True):
        x = torch.full((1, 1, 1), value, dtype=torch.float64)
        with torch.no_grad():
            found.append(float(compiled(x, torch.tensor([timestep]), torch.ones_like(x))))

    assert compiled.stats().decisions[0] == "CS"
    assert found == pytest.approx([20.0, 19.45])


def test_the_drift_of_a_segment_is_the_sum_of_its_relative_changes() -> None:
    residuals = [1.0, 1.1, 1.21]
    model = scripted([1.0] * 3, residuals, [0.0] * 3, [0.0] * 3)

    def loop(m: Any) -> None:
        for timestep in timesteps(3):
            x = torch.ones(1, 1, 1, dtype=torch.float64)
            m(x, torch.tensor([timestep]), x)

    measured = synccache.calibrate(model, loop, policies.step_mask("CS"), stride=1)

    assert measured.drift[0][-1] == pytest.approx(0.2)
