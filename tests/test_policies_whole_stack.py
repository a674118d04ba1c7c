"""The whole-stack methods: decisions and outputs of the published worked examples, and their schedules.

Numbers: caching-policy reference, sections 1 and 2 (worked out by hand there).
"""

from typing import Any

import pytest
import torch
from loops import timesteps
from test_worked_examples import Numbers

import synccache
from synccache import policies
from synccache.errors import MatchError, PolicyError
from synccache.policies import dsl
from synccache.policies.dsl import (
    PREVIOUS,
    Policy,
    Rule,
    Taylor,
    accumulated,
    blocks,
    branches,
    choose,
    lagged,
    output,
    relative_l1,
    step,
)
from synccache.policies.masks import SPEEDS, flattest, scm
from synccache.policies.prospects import static_letters
from synccache.policies.tables import MAGCACHE, TEACACHE

SIGNALS = [10.0, 10.4, 10.9, 11.0, 11.6, 12.0]


def numbers() -> Numbers:
    """Block 0 adds 0, blocks 1 and 2 double the stream: probes see the latents themselves."""
    return Numbers((0.0, 0.0), (1.0, 0.0), (1.0, 0.0))


def ran(policy: Policy, latents: list[Any], model: Any = None, steps: int | None = None) -> Any:
    """The compiled model after a run over these latents, and the outputs' first numbers."""
    compiled = synccache.compile(numbers() if model is None else model, policy)
    compiled.begin(steps=len(latents) if steps is None else steps)
    found = []
    for timestep, values in zip(timesteps(len(latents)), latents, strict=True):
        x = torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1)
        with torch.no_grad():
            out = compiled(x, torch.tensor([timestep]), torch.zeros(1, 1, 1, dtype=torch.float64))
        found.append(float(out[0, 0, 0]))
    return compiled, found


def decisions(policy: Policy, latents: list[Any], model: Any = None) -> str:
    return str(ran(policy, latents, model)[0].stats().decisions[0])


# ---- worked examples


@pytest.mark.parametrize(
    ("polynomial", "threshold", "decided"),
    [((1.0, 0.0), 0.10, "CSSSCC"), ((2.0, 0.0, 0.01), 0.03, "CSSCSC")],
)
def test_teacache(polynomial: tuple[float, ...], threshold: float, decided: str) -> None:
    policy = policies.teacache(threshold, polynomial=polynomial)

    assert decisions(policy, SIGNALS) == decided


def test_teacache_adds_the_whole_stacks_residual() -> None:
    model = Numbers((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))  # at x = 1: r = 2
    _, found = ran(policies.teacache(10.0, polynomial=(1.0, 0.0)), [1, 1.1, 1.2, 1.3, 1.4], model)

    assert found[:4] == pytest.approx([3, 3.1, 3.2, 3.3])


def test_magcache_is_a_step_mask_that_skips_the_last_step_too() -> None:
    ratios = (1.0, 0.98, 0.97, 0.95, 0.99, 0.9)
    policy = policies.magcache(0.12, ratios=ratios, max_skips=2, operator="<")

    assert static_letters(policy.rules[0], 6) == "CSSCSS"
    assert decisions(policy, SIGNALS) == "CSSCSS"


def test_a_table_is_stretched_to_the_nearest_of_its_steps() -> None:
    table = dsl.Table((1.0, 2.0, 3.0, 4.0, 5.0))
    rule = Rule(branches, table >= 4)

    assert static_letters(rule, 3) == "CCS"
    assert static_letters(rule, 9) == "CCCCCCSSS"  # round(i / 2): halves to even


def test_dbcache_sums_what_it_looked_at_over_the_run() -> None:
    model = Numbers((-0.5, 7.0), (1.0, -4.0), (0.0, 0.0))
    latents = [10, 9.8, 9.7, 9.5, 9.4]  # changes 0.05, 0.075, 0.125, 0.0222 against the anchor

    def with_budget(budget: float) -> str:
        policy = policies.dbcache(0.1, front=1, warmup=1, budget=budget)
        return decisions(policy, latents, model)

    assert with_budget(dsl.inf) == "CSSCS"
    assert with_budget(0.26) == "CSSCS"
    assert with_budget(0.24) == "CSSCC"  # 0.25 were seen before the last step
    assert with_budget(0.06) == "CSSCC"
    assert with_budget(0.04) == "CSCCC"


def test_dbcache_follows_mask_limits_and_warm_up_interval() -> None:
    model = numbers()

    def decided(**options: Any) -> str:
        policy = policies.dbcache(9.0, **{"front": 1, "warmup": 1, **options})
        return decisions(policy, [1, 2, 3, 4, 5, 6], model)

    zero_probe = policies.dbcache(9.0, front=1, warmup=1)
    assert decisions(zero_probe, [1, 2, 3], model) == "CCC"  # 0 / 0 is undefined: compute
    model = Numbers((0.0, 1.0), (1.0, 0.0), (1.0, 0.0))
    assert decided() == "CSSSSS"
    assert decided(mask=dsl.Steps("CSSCSC")) == "CSSCSC"
    assert decided(max_skips=1) == "CSCSCS"
    assert decided(max_skipped=3) == "CSSSCC"
    assert decided(warmup=5, warmup_interval=2) == "CSCSCS"


def test_forecast_errors_are_measured_against_the_probes_own_anchors() -> None:
    missed = relative_l1(output(blocks[0]), since=dsl.forecast(Taylor(1)), denominator=dsl.NEW)
    policy = Policy("gate of CG-Taylor", (Rule(blocks[1:], (missed < 0.05) & (step >= 2)),))

    assert decisions(policy, [1.0, 1.1, 1.21, 1.4, 1.5]) == "CCSCS"


def test_thresholds_may_be_switched_by_the_drift_of_the_signal() -> None:
    moved = relative_l1(output(blocks[0]), since=PREVIOUS)
    steady = abs(moved - lagged(moved)) <= 0.01
    limit = choose(steady, 0.12, 0.06)
    policy = Policy("like ACID", (Rule(blocks[1:], accumulated(moved) <= limit),))

    # changes 0.04, 0.048, 0.009, 0.054, 0.034; steady from the third step on but for one
    assert decisions(policy, SIGNALS) == "CSSCSC"
    fixed = policy.with_(threshold=0.06)
    assert decisions(fixed, SIGNALS) == "CSCSCS"


class Script(torch.nn.Module):
    """Three branches that add what a script says for each timestep: only computed steps read theirs.

    x += front[step]; x += middle[step]; x += rear[step]; the sum times 1 is the output.
    """

    def __init__(
        self, steps: int, front: list[float], middle: list[float], rear: list[float]
    ) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(steps, 1, bias=False) for _ in range(3))
        with torch.no_grad():
            for block, row in zip(self.blocks, (front, middle, rear), strict=True):
                block.weight.copy_(torch.tensor([row], dtype=torch.float64))
        self.double()
        self.steps = steps

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor, audio: torch.Tensor
    ) -> torch.Tensor:
        at = torch.tensor(timesteps(self.steps), dtype=torch.float64)
        now = (timestep.double() - at).abs().lt(1e-2).double()
        x = latents
        for block in self.blocks:
            x = x + block(now + 0 * x)
        return x


def scripted(latents: list[float], *rows: list[float]) -> Script:
    """A model whose branches add these numbers, step by step."""
    return Script(len(latents), *rows)


def test_easycache_learns_its_gain_and_bypasses_the_network() -> None:
    latents = [10, 9, 8, 7.2, 6.5, 5.9, 5.4]
    outputs = [2, 2.2, 2.5, 0, 3.0, 0, 3.3]  # at computed steps
    added = [v - z for v, z in zip(outputs, latents, strict=True)]
    model = scripted(latents, added, [0.0] * 7, [0.0] * 7)
    compiled, found = ran(policies.easycache(0.1, warmup=3), latents, model)

    assert compiled.stats().decisions[0] == "CCCSCSC"
    assert found == pytest.approx([2, 2.2, 2.5, 1.7, 3.0, 2.4, 3.3])
    assert compiled.stats().syncs == 7 + 6  # the timestep of a call, and one reading a decision


@pytest.mark.parametrize(("high", "third"), [(1.5, 20.15), (2.0, 20.40)])
def test_dicache_follows_its_probe_between_two_anchors(high: float, third: float) -> None:
    latents = [10, 9.8, 9.6, 9.4, 9.2, 9.0]
    probes = [11, 11, 10.9, 10.8, 10.6, 10.5]
    ends = [20, 20.3, 0, 0, 21, 0]  # at computed steps
    front = [p - x for p, x in zip(probes, latents, strict=True)]
    rest = [y - p for y, p in zip(ends, probes, strict=True)]
    model = scripted(latents, front, rest, [0.0] * 6)
    policy = policies.dicache(0.02, retention=0.34, high=high)  # 2 of 6 steps computed first
    compiled, found = ran(policy, latents, model)

    assert compiled.stats().decisions[0] == "CCSSCS"
    assert found[:5] == pytest.approx([20, 20.3, 20.35, third, 21])
    assert found[5] == pytest.approx(21.45)
    assert compiled.stats().syncs == 6 + 5


def test_confidence_taylor_trusts_the_last_block_while_the_first_is_forecast_well() -> None:
    probes, ends = [1.0, 1.1, 1.21, 1.4, 1.5], [5, 5.4, 0, 6.6, 0]
    rest = [y - p for y, p in zip(ends, probes, strict=True)]
    model = scripted([0.0] * 5, probes, rest, [0.0] * 5)
    policy = policies.confidence_taylor(0.05, probe_order=1, order=1, warmup=2, last=0)
    compiled, found = ran(policy, [0.0] * 5, model)

    assert compiled.stats().decisions[0] == "CCSCS"
    assert found == pytest.approx([5, 5.4, 5.8, 6.6, 7.2])


def test_blockdance_keeps_the_value_and_forgets_the_sample() -> None:
    model = scripted([1, 0.9], [2, 9], [2, 9], [3, 3.1])
    policy = policies.blockdance(2, interval=2, highest=1000.0)

    assert ran(policy, [1, 0.9], model)[1] == pytest.approx([8, 8.1])


def test_delta_dit_adds_the_offset_of_one_end() -> None:
    latents = [1, 0.9, 0.8, 0.7]
    model = scripted(latents, [3, 2.9, 2.7, 9], [0.0] * 4, [6, 9, 5.5, 5.6])
    _, found = ran(policies.delta_dit(1, interval=2, boundary=2), latents, model)

    assert found == pytest.approx([10, 9.8, 9, 3.4 + 5.6])


def test_the_avatar_schedule_runs_the_last_block_on_the_kept_stream() -> None:
    model = scripted([1.0] * 18, [*range(1, 19)], [0.0] * 18, [0.5 * i for i in range(18)])
    compiled, found = ran(policies.avatar_schedule(), [1.0] * 18, model)

    assert compiled.stats().decisions[0] == "C" * 16 + "SS"
    assert found[15:] == pytest.approx([17 + 7.5, 17 + 8, 17 + 8.5])


def test_taylorseer_lite_forecasts_the_stream_behind_the_last_block() -> None:
    values = [t**2 / 3 + 1 for t in range(9)]
    model = scripted([0.0] * 9, values, [0.0] * 9, [0.0] * 9)
    _, found = ran(policies.taylorseer_lite(3, order=2, first=1), [0.0] * 9, model)

    assert found[4:6] == pytest.approx([5, 6])
    assert found[7:] == pytest.approx([16.333333, 20.333333], abs=1e-5)


def test_seacache_puts_a_line_through_two_residuals() -> None:
    latents = [0.0] * 6
    model = scripted(latents, [0, 0, 1.0, 0, 1.6, 0], [0.0] * 6, [0.0] * 6)
    rule = policies.seacache(reuse=dsl.Linear()).rules[0]
    policy = Policy("line", (Rule(rule.skip, dsl.Steps("CSCSCS"), rule.reuse),))

    assert ran(policy, latents, model)[1][5] == pytest.approx(1.9)


# ---- schedules


@pytest.mark.parametrize(
    ("policy", "letters"),
    [
        (policies.taylorseer_lite(5, first=1), "CSSSSCSSSSCS"),
        (policies.taylorseer_lite(5, first=3), "CCCSSSSCSSSS"),
        (policies.freqca(4, first=3), "CCCSSSCSSSCS"),
    ],
)
def test_intervals_begin_behind_the_first_steps(policy: Policy, letters: str) -> None:
    assert static_letters(policy.rules[0], 12) == letters


def test_delta_dit_skips_the_rear_early_and_the_front_late() -> None:
    front, rear = policies.delta_dit(1, interval=2, boundary=4).rules

    assert static_letters(rear, 8) == "CSCSCCCC"
    assert static_letters(front, 8) == "CCCCCSCS"


def test_the_avatar_schedule_computes_thirty_of_fifty_steps() -> None:
    letters = static_letters(policies.avatar_schedule().rules[0], 50)

    computed = {*range(16), 20, 25, 30, 35, *range(40, 50)}
    assert {i for i, letter in enumerate(letters) if letter == "C"} == computed


SCM_28 = {
    "slow": "1111111101110011100110010001",
    "medium": "1111110110001100011000110001",
    "fast": "1111110100010000100000100001",
    "ultra": "1111001000001000000100000001",
}


@pytest.mark.parametrize("speed", SPEEDS)
def test_scm_masks_for_28_steps_are_the_published_ones(speed: str) -> None:
    assert scm(speed, 28).letters == SCM_28[speed].replace("1", "C").replace("0", "S")


@pytest.mark.parametrize("speed", SPEEDS)
def test_scm_masks_for_other_numbers_of_steps_are_cache_dits(speed: str) -> None:
    interface = pytest.importorskip("cache_dit.caching.cache_interface")
    for steps in (4, 6, *range(8, 101)):
        theirs = interface.steps_mask(total_steps=steps, mask_policy=speed)
        letters = "".join("C" if computed else "S" for computed in theirs)

        assert scm(speed, steps).letters == letters


@pytest.mark.parametrize("steps", [0, 1, 3, 5, 7])
def test_there_is_no_scm_mask_for_other_few_steps(steps: int) -> None:
    with pytest.raises(PolicyError, match=f"no SCM mask for {steps} steps"):
        scm("fast", steps)


def test_the_flattest_steps_are_skipped_within_their_limits() -> None:
    bends = (9.0, 0.1, 0.2, 0.3, 5.0, 0.4, 9.0)

    assert flattest(bends, count=3, max_skips=2).letters == "CSSCCSC"
    assert flattest(bends, count=3, max_skips=3).letters == "CSSSCCC"
    with pytest.raises(PolicyError, match=r"5 of 7 steps cannot be skipped .* 4 can"):
        flattest(bends, count=5)


def test_published_tables_are_complete() -> None:
    assert {len(table) for table in TEACACHE.values()} == {5}
    assert sorted(len(table) for table in MAGCACHE.values()) == [28, 40, 40, 50, 50, 50, 50]
    assert all(table[0] == 1.0 for table in MAGCACHE.values())


def test_two_ends_that_overlap_share_their_middle() -> None:
    latents = [1, 0.9, 0.8, 0.7]
    model = scripted(latents, [1, 2, 3, 4], [10, 20, 30, 40], [100, 200, 300, 400])
    compiled, found = ran(policies.delta_dit(2, interval=2, boundary=2), latents, model)

    # the rear of step 0 on step 1, the front of step 2 on step 3
    assert found == pytest.approx([112, 0.9 + 2 + 110, 333.8, 0.7 + 33 + 400])
    assert len(compiled.variant.layout.regions) == 3
    (held,) = compiled._trajectories[None].branches.values()
    assert len(held.held) == 3


def test_rules_that_may_skip_together_do_not_overlap() -> None:
    rules = (Rule(blocks[:2], step >= 1), Rule(blocks[1:], ~dsl.every(step, 2)))

    with pytest.raises(MatchError, match="rules 1 and 2 both skip"):
        ran(Policy("both", rules), [1, 2, 3])
