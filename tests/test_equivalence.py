"""What a compiled model computes: the model itself where nothing is skipped, the policy where it is.

The reference for skipped steps is tests/reference_interpreter.py, which knows no graph.
"""

from typing import Any

import pytest
import torch
from generated_blocks import FRAMES, Audio, Spec
from generated_models import Generated, build, specs
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from loops import difference, outputs, same, tensors, timesteps
from real_models import NAMES
from real_models import build as build_real
from reference_interpreter import Interpreter

import synccache
from synccache import policies
from synccache.policies.dsl import (
    AUDIO,
    EACH_BRANCH,
    FIRST_BRANCH,
    LAST_COMPUTED,
    PREVIOUS,
    Condition,
    Hold,
    Linear,
    Policy,
    Probe,
    Rule,
    Segments,
    Selector,
    Steps,
    accumulated,
    blocks,
    branches,
    mask,
    output,
    progress,
    relative_l1,
    residual,
    segments,
    skips,
    step,
)


def examples(count: int) -> settings:
    """A second or two each: few, and reported as found, because a model is its own explanation."""
    return settings(
        max_examples=count,
        deadline=None,
        phases=(Phase.explicit, Phase.reuse, Phase.generate),
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow],
        print_blob=True,
    )


STEPS = 5
ROUNDING = 2e-5  # of float32, through the blocks behind a skipped run
SAME_INPUTS = 1e-5
HALF_ROUNDING = 0.1  # of bfloat16, whose unit is 1/256

SKIPS: list[Selector | Segments] = [
    blocks[1:],
    branches.after(blocks[0]) - branches.reading(AUDIO),
    segments(branches.after(blocks[0]) - branches.reading(AUDIO)),
    branches.mlp - blocks[0],
    branches.attention & blocks[1:],
    blocks[:-1] - blocks[0] | blocks[-1] & branches.mlp,
    blocks[-1],
]
PROBES: list[Probe] = [output(blocks[0]), residual(blocks[0])]


def relaxed(spec: Spec) -> float:
    return HALF_ROUNDING if spec.half else ROUNDING


def person(case: Generated) -> torch.Tensor:
    """A mask over the video's tokens: the first of every frame."""
    tokens = FRAMES * case.spec.tokens_per_frame
    return (torch.arange(tokens) % case.spec.tokens_per_frame == 0).float()


@st.composite
def conditions(draw: st.DrawFn) -> Condition:
    since = draw(st.sampled_from([PREVIOUS, LAST_COMPUTED]))
    weight = mask("person", inside=draw(st.floats(0, 5))) if draw(st.booleans()) else None
    moved = relative_l1(draw(st.sampled_from(PROBES)), since=since, weight=weight)
    threshold = draw(st.floats(0.01, 1.5))
    signal = accumulated(moved) if draw(st.booleans()) else moved
    measured = signal <= threshold if draw(st.booleans()) else signal < threshold
    rest = draw(st.sampled_from([None, step >= 2, skips < 2, progress >= 0.2, ~Steps("CSSCS")]))
    return measured if rest is None else measured & rest


@st.composite
def measuring_policies(draw: st.DrawFn) -> Policy:
    rule = Rule(
        draw(st.sampled_from(SKIPS)),
        draw(conditions()),
        draw(st.sampled_from([Hold(), Linear()])),
    )
    return Policy("random", (rule,), draw(st.sampled_from([FIRST_BRANCH, EACH_BRANCH])))


@st.composite
def computing_policies(draw: st.DrawFn) -> Policy:
    """Policies whose gates never say skip."""
    moved = relative_l1(draw(st.sampled_from(PROBES)), since=LAST_COMPUTED)
    when = draw(st.sampled_from([moved < 0, Steps("C"), (moved <= 9) & (step < 0)]))
    rule = Rule(draw(st.sampled_from(SKIPS)), when)
    return draw(st.sampled_from([policies.exact(), Policy("computing", (rule,))]))


# ---------------------------------------------------------------- nothing is skipped


@examples(14)
@given(spec=specs(), policy=computing_policies())
def test_with_every_gate_on_compute_the_output_is_the_models_bit_for_bit(
    spec: Spec, policy: Policy
) -> None:
    case = build(spec)
    compiled = synccache.compile(case.model, policy)

    assert same(outputs(case.model, case), outputs(compiled, case))


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("wan_t2v", policies.first_block_cache(0.0)),
        ("wan_i2v", policies.exact()),
        ("wan_s2v", policies.exact()),
    ],
    ids=NAMES,
)
def test_released_models_stay_bit_identical_when_nothing_is_skipped(
    name: str, policy: Policy
) -> None:
    case = build_real(name)
    compiled = synccache.compile(case.model, policy, conditions=case.conditions)

    assert same(outputs(case.model, case, steps=2), outputs(compiled, case, steps=2))


def test_on_wan_s2v_the_tags_find_exactly_the_injectors_and_asymmetric_leaves_them_live() -> None:
    case = build_real("wan_s2v")
    (rule,) = policies.asymmetric().rules
    never = Policy("never", (Rule(rule.skip, rule.when & (step < 0)),), FIRST_BRANCH)
    compiled = synccache.compile(case.model, never)

    assert same(outputs(case.model, case, steps=2), outputs(compiled, case, steps=2))
    injected = [b for b in compiled.program.branches if AUDIO in b.reads]
    assert case.audio_after_blocks == tuple(b.block for b in injected)
    assert all("audio_injector" in b.label for b in injected)
    assert len(compiled.program.branches) == 3 * 40 + 12


@examples(4)
@given(spec=specs(half=False))
def test_weights_changed_after_compiling_are_used(spec: Spec) -> None:
    case = build(spec)
    compiled = synccache.compile(case.model, "exact")
    outputs(compiled, case, steps=1)
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.mul_(1.25)
    compiled.reset()

    assert same(outputs(case.model, case, steps=2), outputs(compiled, case, steps=2))


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("change", ["in place", "new tensor"])
def test_a_condition_that_changes_between_steps_is_seen(inference: bool, change: str) -> None:
    case = build(Spec(blocks=3, refiner=True, audio=Audio.OWN))
    context = torch.inference_mode() if inference else torch.no_grad()
    with context:
        compiled = synccache.compile(case.model, "exact")
        audio, text = torch.randn(1, 3, 3), torch.randn(1, 3, 3)
        for k, timestep in enumerate(timesteps(4)):
            (latents, time, _, _), _ = case.new_inputs(k, timestep)
            expected = case.model(latents, time, audio, text)
            assert torch.equal(expected, compiled(latents, time, audio, text))
            if change == "in place":
                audio.add_(1.0)
                text[:, :1] = k
            else:
                audio, text = torch.randn(1, 3, 3), torch.randn(1, 3, 3)


# ------------------------------------------------------------------- steps are skipped


@examples(18)
@given(spec=specs(), policy=measuring_policies())
def test_the_compiled_model_does_what_the_reference_interpreter_does(
    spec: Spec, policy: Policy
) -> None:
    case = build(spec)
    masks = {"person": person(case)}
    reference = Interpreter(case.model, policy, masks=masks)
    compiled = synccache.compile(case.model, policy, masks=masks)
    expected = outputs(reference, case, STEPS)
    found = outputs(compiled, case, STEPS)

    assert list(reference.decisions.values()) == list(compiled.stats().decisions.values())
    assert difference(expected, found) <= relaxed(spec)


LIVE_AUDIO = branches.after(blocks[0]) - branches.reading(AUDIO)
ONE = frozenset({1})
HARD = {
    "texts of two lengths": (Spec(text_list=True, batch=2), LIVE_AUDIO),
    "texts of two lengths, refined": (Spec(text_list=True, batch=2, refiner=True), LIVE_AUDIO),
    "text stream, audio added": (
        Spec(joint_text=True, audio=Audio.ADDS, audio_blocks=ONE),
        LIVE_AUDIO,
    ),
    "text stream unused behind the last of two blocks": (
        Spec(joint_text=True, audio=Audio.NONE, blocks=2),
        blocks[1:],
    ),
    "text stream, no gates": (
        Spec(joint_text=True, audio=Audio.NONE, blocks=2, gated=False),
        blocks[1:],
    ),
    "text stream, three blocks": (Spec(joint_text=True, audio=Audio.NONE), blocks[1:]),
    "text stream, audio inside blocks": (Spec(joint_text=True, audio=Audio.OWN), LIVE_AUDIO),
    "text stream, audio between blocks": (Spec(joint_text=True, audio_blocks=ONE), LIVE_AUDIO),
    "audio stream, live": (Spec(audio=Audio.STREAM), LIVE_AUDIO),
    "audio stream, skipped": (Spec(audio=Audio.STREAM), blocks[1:]),
    "audio stream, both outputs": (
        Spec(audio=Audio.STREAM, both_outputs=True, early_exit=True),
        LIVE_AUDIO,
    ),
    "audio merged into text": (Spec(audio=Audio.MERGED), LIVE_AUDIO),
    "early exit, reference": (Spec(audio=Audio.OWN, early_exit=True, reference=True), LIVE_AUDIO),
    "writes into a slice, in place": (
        Spec(slice_write=True, in_place=True, reference=True, audio_blocks=frozenset({0, 2})),
        LIVE_AUDIO,
    ),
    "joint attention is attention": (Spec(joint_text=True), branches.attention & blocks[1:]),
}


@pytest.mark.parametrize(("spec", "skip"), HARD.values(), ids=HARD)
def test_hard_cases_agree_with_the_reference_interpreter(spec: Spec, skip: Selector) -> None:
    case = build(spec)
    policy = policies.step_mask("CSSCS", skip=skip, reuse=Linear())
    reference, compiled = Interpreter(case.model, policy), synccache.compile(case.model, policy)
    expected, found = outputs(reference, case, STEPS), outputs(compiled, case, STEPS)

    assert list(reference.decisions.values()) == list(compiled.stats().decisions.values())
    assert difference(expected, found) <= ROUNDING


@pytest.mark.parametrize(
    ("spec", "threshold"),
    [(Spec(in_place=True), 0.01), (Spec(in_place=True, audio=Audio.OWN), 1.3)],
)
def test_a_residual_is_measured_on_a_stream_that_is_written_in_place(
    spec: Spec, threshold: float
) -> None:
    case, policy = build(spec), policies.first_block_cache(threshold)
    reference, compiled = Interpreter(case.model, policy), synccache.compile(case.model, policy)
    expected, found = outputs(reference, case), outputs(compiled, case)

    assert list(reference.decisions.values()) == list(compiled.stats().decisions.values())
    assert difference(expected, found) <= ROUNDING


@pytest.mark.parametrize("skip", [blocks[-1], blocks[1:], LIVE_AUDIO])
def test_a_mask_that_nobody_gave_is_found_whatever_is_skipped(skip: Selector) -> None:
    case = build(Spec(audio=Audio.OWN))
    moved = relative_l1(output(blocks[0]), since=PREVIOUS, weight=mask("person", inside=2.0))
    compiled = synccache.compile(case.model, Policy("mine", (Rule(skip, moved < 9),)))
    outputs(compiled, case)

    assert compiled.stats().decisions == {0: "CSSS", 1: "CSSS"}


def one_step_twice(case: Any, skip: Selector | Segments) -> tuple[float, dict[Any, str]]:
    """How far a skipped step lies from the computed one of the same inputs, and the decisions."""
    policy = policies.step_mask("CS", skip=skip)
    compiled = synccache.compile(case.model, policy, conditions=getattr(case, "conditions", None))
    barely = float(
        torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    )  # another step to the gate
    found = []
    for timestep in (1.0, barely):
        args, kwargs = case.new_inputs(seed=0, timestep=timestep)
        found.append([tensors(compiled(*args, **kwargs))])
    return difference(*found), compiled.stats().decisions


@examples(6)
@given(spec=specs(half=False), skip=st.sampled_from(SKIPS))
def test_a_skipped_step_with_the_same_inputs_equals_the_full_one(
    spec: Spec, skip: Selector | Segments
) -> None:
    distance, decisions = one_step_twice(build(spec), skip)

    assert decisions == {0: "CS"}
    assert distance <= SAME_INPUTS


@pytest.mark.parametrize(
    ("name", "skip"),
    [("wan_t2v", blocks[1:]), ("wan_i2v", branches.mlp), ("wan_s2v", segments(LIVE_AUDIO))],
)
def test_a_skipped_step_of_a_released_model_with_the_same_inputs_equals_the_full_one(
    name: str, skip: Selector | Segments
) -> None:
    distance, decisions = one_step_twice(build_real(name), skip)

    assert decisions == {0: "CS"}
    assert distance <= SAME_INPUTS


@examples(6)
@given(spec=specs(), policy=measuring_policies())
def test_what_is_held_never_exceeds_the_plan(spec: Spec, policy: Policy) -> None:
    case = build(spec)
    compiled = synccache.compile(case.model, policy)
    for k, timestep in enumerate(timesteps(3)):
        for branch in range(2):
            args, kwargs = case.new_inputs(k, timestep, branch)
            compiled(*args, **kwargs)
        assert compiled.stats().bytes_held <= compiled.plan.memory.cache_bytes


@examples(5)
@given(spec=specs(), policy=measuring_policies())
def test_interleaved_trajectories_equal_separate_ones(spec: Spec, policy: Policy) -> None:
    case = build(spec)
    compiled = synccache.compile(case.model, policy)
    separate = [outputs(compiled, case, STEPS, branches=1, seed=s) for s in (0, 50)]
    together: list[list[Any]] = [[], []]
    for k, timestep in enumerate(timesteps(STEPS)):
        for key, seed in enumerate((0, 50)):
            args, kwargs = case.new_inputs(seed + k, timestep)
            with compiled.trajectory(key), torch.no_grad():
                together[key].append(tensors(compiled(*args, **kwargs)))

    assert all(map(same, separate, together))


@examples(5)
@given(spec=specs(), policy=measuring_policies())
def test_a_second_run_equals_the_first(spec: Spec, policy: Policy) -> None:
    case = build(spec)
    compiled = synccache.compile(case.model, policy)
    first = outputs(compiled, case, STEPS)
    decisions = compiled.stats().decisions
    jumped = outputs(compiled, case, STEPS)  # the timestep jumps back up
    assert decisions == compiled.stats().decisions
    compiled.reset()
    again = outputs(compiled, case, STEPS)

    assert decisions == compiled.stats().decisions
    assert same(first, jumped)
    assert same(first, again)


# ------------------------------------------------------------------------ what is found


@examples(8)
@given(spec=specs())
def test_streams_and_branches_are_found(spec: Spec) -> None:
    case = build(spec)
    compiled = synccache.compile(case.model, "exact")
    args, kwargs = case.new_inputs(seed=0, timestep=900.0)
    compiled(*args, **kwargs)
    program = compiled.program
    found = [
        [(b.block, b.reads, b.kind) for b in program.branches if b.stream == stream.index]
        for stream in program.streams
    ]
    expected = list(case.model.by_hand(*args, **kwargs).program().values())

    assert sorted(expected, key=repr) == sorted(found, key=repr)
