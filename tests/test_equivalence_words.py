"""Every word of the language: the compiled graph does what the reference interpreter does by hand.

Random models, conditions, predictors and forms of skipping: the same decisions, outputs equal to
within rounding, and the same tensors held for the next step.
"""

from typing import Any

import runnable_policies as runnable
import torch
from generated_blocks import FRAMES, Audio, Spec
from generated_models import build, specs
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from loops import difference, outputs
from reference_interpreter import Interpreter

import synccache
from synccache.policies.dsl import Policy, branches, modules, network, values, whole

ROUNDING = 2e-5  # of float32, through the blocks behind a skipped run


def examples(count: int) -> settings:
    return settings(
        max_examples=count,
        deadline=None,
        phases=(Phase.explicit, Phase.reuse, Phase.generate),
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow],
        print_blob=True,
    )


def compared(spec: Spec, policy: Policy) -> tuple[Any, Any, float]:
    """The interpreter, the compiled model, and how far their outputs are apart."""
    case = build(spec)
    tokens = torch.arange(FRAMES * spec.tokens_per_frame)
    masks = {"person": (tokens % spec.tokens_per_frame == 0).float()}
    reference = Interpreter(case.model, policy, masks=masks, steps=runnable.STEPS)
    compiled = synccache.compile(case.model, policy, masks=masks)
    compiled.begin(steps=runnable.STEPS)
    expected = outputs(reference, case, runnable.STEPS)
    found = outputs(compiled, case, runnable.STEPS)
    return reference, compiled, difference(expected, found)


def assert_same(spec: Spec, policy: Policy) -> None:
    reference, compiled, distance = compared(spec, policy)
    decisions = list(compiled.stats().decisions.values())

    assert list(reference.decisions.values()) == decisions
    assert distance <= ROUNDING


exact = st.just(False)


runs = st.sampled_from(runnable.RUNS)


@examples(12)
@given(spec=specs(half=False), policy=runnable.policies(runs))
def test_every_signal_condition_and_predictor_on_runs(spec: Spec, policy: Policy) -> None:
    assert_same(spec, policy)


@examples(6)
@given(spec=specs(half=False), policy=runnable.policies(runs.map(modules)))
def test_branches_held_before_their_gates(spec: Spec, policy: Policy) -> None:
    assert_same(spec, policy)


@examples(6)
@given(
    spec=specs(half=False, audio=Audio.OWN, both_outputs=False),
    policy=runnable.policies(st.sampled_from([network, values(network)]), whole=True),
)
def test_the_whole_network_bypassed(spec: Spec, policy: Policy) -> None:
    assert_same(spec, policy)


@examples(6)
@given(
    spec=specs(half=False, audio=Audio.OWN, both_outputs=False, early_exit=False),
    policy=runnable.policies(st.just(whole(branches))) | runnable.whole_with_anchors,
)
def test_a_stack_held_whole_though_its_first_block_is_probed(spec: Spec, policy: Policy) -> None:
    assert_same(spec, policy)


@examples(4)
@given(spec=specs(half=False), policy=runnable.two_anchors)
def test_two_anchors_and_the_ratio_of_the_probe(spec: Spec, policy: Policy) -> None:
    assert_same(spec, policy)
