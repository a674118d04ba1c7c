"""Goals: schedules of regions over steps, solved from a calibration and run as masks."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from small_models import denoise, talking

import synccache
from synccache import Calibration, RegionSchedule, policies
from synccache.errors import PlanError, StateError
from synccache.planner.goals import plan_for_speedup
from synccache.planner.storage import FLOAT8, Place
from synccache.policies.dsl import AUDIO, Linear, Policy, Rule, blocks, branches, segments, step

STEPS = 8
POLICY = policies.asymmetric()


def timed(known: Calibration) -> Calibration:
    """With seconds that do not depend on what else this machine does: regions 1, the rest 0.5."""
    assert known.by_region is not None
    by_region = replace(known.by_region, seconds=(1.0, 1.0, 1.0), fixed_seconds=0.5)
    return replace(known, by_region=by_region)


@cache
def measured() -> Calibration:
    return timed(synccache.calibrate(talking(), lambda m: denoise(m, STEPS), POLICY, stride=1))


def drift_at(speedup: float) -> float:
    """Predicted drift of the best schedule of regions at a speed-up."""
    return synccache.plan_schedule(measured(), target_speedup=speedup).chosen.drift + 1e-6


def decisions(model: synccache.CachedModel) -> list[str]:
    return list(model.stats().decisions.values())


def test_products_by_region_add_up_to_the_drift_between_steps() -> None:
    """drift[a][t] of each region, from the Gram matrix, against the residuals themselves."""
    known = measured().by_region
    assert known is not None
    region = known.drift(1)

    for a in range(STEPS):
        for t in range(STEPS):
            assert region[a][t] == 0.0 if a >= t else region[a][t] > 0.0
    assert region[0][STEPS - 1] > region[STEPS - 2][STEPS - 1]  # farther is worse


def test_a_calibration_with_regions_survives_its_file(tmp_path: object) -> None:
    path = f"{tmp_path}/c.json"
    measured().save(path)

    assert Calibration.load(path) == measured()


def test_a_target_speedup_is_met_and_each_region_has_a_mask_of_its_own() -> None:
    found = synccache.plan_schedule(measured(), target_speedup=1.6, warmup_steps=2)

    assert found.chosen.speedup >= 1.6 - 1e-6
    assert {len(row.letters) for row in found.rows} == {STEPS}
    assert all(row.letters.startswith("CC") for row in found.rows)
    assert sum(row.drift for row in found.rows) == pytest.approx(found.chosen.drift)


def test_a_faster_goal_never_has_less_drift() -> None:
    drifts = [
        synccache.plan_schedule(measured(), target_speedup=s).chosen.drift for s in (1.2, 1.5, 1.8)
    ]

    assert drifts == sorted(drifts)


def test_a_drift_cap_gives_the_fastest_schedule_within_it() -> None:
    slow = synccache.plan_schedule(measured(), target_speedup=1.5)
    fast = synccache.plan_schedule(measured(), max_drift=slow.chosen.drift + 1e-6)

    assert fast.chosen.drift <= slow.chosen.drift + 1e-5
    assert fast.chosen.speedup >= slow.chosen.speedup - 1e-6


def test_neighbours_on_the_frontier_are_printed() -> None:
    found = synccache.plan_schedule(measured(), target_speedup=1.4)
    speeds = [point.speedup for point in found.frontier]
    text = str(found)

    assert found.chosen in found.frontier
    assert len(speeds) >= 3 and speeds == sorted(speeds, reverse=True)
    assert "speed-up  compute  predicted drift" in text
    assert "->" in text and "optimal after" in text


def test_a_goal_out_of_reach_is_refused_with_what_is_within_reach() -> None:
    with pytest.raises(PlanError, match=r"no schedule takes 2.00% .* need \d+.\d+%, a speed-up of"):
        synccache.plan_schedule(measured(), target_speedup=50.0)


def test_a_compiled_goal_skips_each_region_where_its_mask_says() -> None:
    compiled = synccache.compile(talking(), POLICY, max_drift=drift_at(1.5), calibration=measured())
    denoise(compiled, STEPS)
    found = compiled.variant.schedule
    assert found is not None
    masks = [row.letters for row in found.rows if "S" in row.letters]
    anywhere = "".join("S" if "S" in column else "C" for column in zip(*masks, strict=True))

    assert decisions(compiled) == [anywhere, anywhere]
    assert compiled.stats().syncs == 2 * STEPS  # the timestep of each call: no gate waits
    assert "speed-up  compute  predicted drift" in compiled.explain()
    compiled_share = compiled.stats().executed_fraction
    assert compiled_share < 1.0


def by_hand(found: RegionSchedule) -> torch.Tensor:
    """The loop with blocks called one by one, each gap reused where its mask says."""
    model = talking()
    held: dict[tuple[int, int], torch.Tensor] = {}

    def run(latents: torch.Tensor, timestep: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        step = STEPS - round(float(timestep) / 1000 * STEPS)
        branch = int(bool((audio == 0).all()))
        time, heard = model.time(timestep[:, None, None] / 1000), model.listen(audio)
        hidden = model.blocks[0](model.embed(latents), time)
        hidden = hidden + model.injectors[0](hidden, heard)
        for gap, row in enumerate(found.rows):
            if row.letters[step] == "S":
                hidden = hidden + held[gap, branch]
            else:
                after = model.blocks[gap + 1](hidden, time)
                held[gap, branch] = after - hidden
                hidden = after
            hidden = hidden + model.injectors[gap + 1](hidden, heard)
        return model.head(hidden)

    return denoise(run, STEPS)  # type: ignore[arg-type]


def test_a_schedule_runs_as_the_reference_does_by_hand() -> None:
    found = synccache.plan_schedule(measured(), target_speedup=1.6)
    compiled = synccache.compile(talking(), POLICY, schedule=found)

    assert len({row.letters for row in found.rows}) > 1  # regions differ
    assert torch.allclose(by_hand(found), denoise(compiled, STEPS), rtol=1e-4, atol=1e-5)


def test_a_schedule_under_a_budget_chooses_storages_and_holds_what_it_says() -> None:
    free = synccache.compile(talking(), POLICY, max_drift=drift_at(1.5), calibration=measured())
    denoise(free, STEPS)
    budget = free.plan.memory.total_bytes - 400
    tight = synccache.compile(
        talking(), POLICY, mem_budget=budget, max_drift=drift_at(1.5), calibration=measured(),
        storages=["as computed", FLOAT8],
    )  # fmt: skip
    denoise(tight, STEPS)
    states = tight._trajectories[None].branches.values()
    held = sum(h.bytes_at(Place.DEVICE) for state in states for h in state.held.values())

    assert held == tight.plan.memory.residual_bytes
    assert tight.plan.memory.total_bytes <= budget
    assert tight.plan.drift == pytest.approx(tight.variant.schedule.chosen.drift)


def test_a_schedule_of_another_model_is_refused_with_what_differs() -> None:
    found = synccache.plan_schedule(measured(), target_speedup=1.5)

    with pytest.raises(PlanError, match="the schedule belongs to something else: regions"):
        denoise(synccache.compile(talking(5), POLICY, schedule=found))
    with pytest.raises(PlanError, match="model 'Other' there, 'Talking' here"):
        denoise(synccache.compile(talking(), POLICY, schedule=replace(found, model="Other")))


def test_a_run_at_other_timesteps_is_refused() -> None:
    found = synccache.plan_schedule(measured(), target_speedup=1.5)

    with pytest.raises((StateError, PlanError), match="timestep"):
        denoise(synccache.compile(talking(), POLICY, schedule=found), STEPS + 3)


@pytest.mark.parametrize(
    ("asked", "fact"),
    [
        ({"target_speedup": 2.0}, "target_speedup= is solved from measured drift"),
        ({"max_drift": 0.1}, "max_drift= is solved from measured drift"),
    ],
)
def test_a_goal_without_measured_drift_is_refused(asked: dict[str, float], fact: str) -> None:
    with pytest.raises(PlanError, match=fact):
        synccache.compile(talking(), POLICY, **asked)


def test_two_goals_are_refused() -> None:
    with pytest.raises(PlanError, match="target_speedup= and max_drift= each say"):
        synccache.compile(
            talking(), POLICY, target_speedup=2.0, max_drift=0.1, calibration=measured()
        )


def test_a_predictor_of_two_tensors_keeps_its_history_in_a_schedule() -> None:
    policy = Policy(
        "linear",
        (Rule(segments(branches.after(blocks[0]) - branches.reading(AUDIO)), step >= 2, Linear()),),
    )
    known = timed(synccache.calibrate(talking(), lambda m: denoise(m, STEPS), policy, stride=1))
    compiled = synccache.compile(
        talking(), policy, schedule=synccache.plan_schedule(known, target_speedup=1.5)
    )
    denoise(compiled, STEPS)

    assert {region.tensors for region in compiled.plan.regions} == {2}


# ---------------------------------------------------- where the noise levels are known, planned steps


LEVELS = tuple(1.0 - step / STEPS for step in range(STEPS + 1))


@cache
def measured_with_levels() -> Calibration:
    def run(model: synccache.CachedModel) -> None:
        model.begin(sigmas=LEVELS)
        denoise(model, STEPS)

    return timed(synccache.calibrate(talking(), run, POLICY, stride=1))


def test_with_noise_levels_a_speed_up_becomes_a_planned_schedule() -> None:
    compiled = synccache.compile(
        talking(), POLICY, target_speedup=1.6, calibration=measured_with_levels()
    )
    denoise(compiled, STEPS)
    letters = decisions(compiled)[0]
    computed = letters.count("C")

    # 3 regions of 1 s and 0.5 s besides: 28 s in all, 4 s fixed
    assert 28 / (4 + 3 * computed) >= 1.6 > 28 / (4 + 3 * (computed + 1))
    assert compiled.variant.matches[0].rule.reuse.history > 1
    assert "computed steps  speed-up  predicted error" in compiled.explain()


def test_more_computed_steps_are_never_predicted_to_be_worse() -> None:
    goal = plan_for_speedup(measured_with_levels(), 1.6)
    errors = [point.predicted_error for point in goal.frontier]

    assert goal.chosen in goal.frontier and len(errors) >= 4
    assert errors == sorted(errors, reverse=True)


def test_a_speed_up_from_a_calibration_without_noise_levels_is_refused() -> None:
    with pytest.raises(PlanError, match="planning computed steps needs the noise levels"):
        synccache.compile(talking(), POLICY, target_speedup=1.5, calibration=measured())


def test_a_speed_up_beyond_what_is_skippable_is_refused_with_why() -> None:
    with pytest.raises(PlanError, match=r"with 1 of 8 steps computed the speed-up is 4.00, not 9"):
        synccache.compile(talking(), POLICY, target_speedup=9.0, calibration=measured_with_levels())
