"""Model classes of repositories that are not packages, from local checkouts named by variables.

    SYNCCACHE_WAN22=~/Wan2.2 SYNCCACHE_HUNYUAN_AVATAR=~/HunyuanVideo-Avatar pytest -m checkout

Also SYNCCACHE_INFINITETALK, SYNCCACHE_OMNIAVATAR and SYNCCACHE_FANTASYTALKING. The same checks as for
released packages (test_fx_program.py); goldens/README.md says why each program is right.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from checkout_models import VARIABLES, build
from table_models import TableCase
from test_fx_program import ROUNDING, bits_differ, printed, tensors

import synccache
from synccache import policies
from synccache.fx.capture import capture
from synccache.fx.conditions import tag_inputs
from synccache.fx.program import residual_program

pytestmark = pytest.mark.checkout


@pytest.fixture(scope="module", params=VARIABLES)
def case(request: pytest.FixtureRequest) -> Iterator[TableCase]:
    path = os.environ.get(VARIABLES[request.param])
    if path is None:
        pytest.skip(f"{VARIABLES[request.param]} names no checkout")
    # InfiniteTalk compiles a function; compiled, it would give other bits than the recorded one
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        yield build(request.param, Path(path).expanduser())


def test_a_recorded_checkout_gives_the_same_bits_on_new_values_and_shapes(case: TableCase) -> None:
    compiled = synccache.compile(case.model, "exact", conditions=case.conditions)
    first, second = [(0, 900.0, k, 0) for k in (0, 1)], [(1, 800.0, k, 0) for k in (0, 1)]
    larger = [(2, 700.0, 0, 1), (3, 600.0, 1, 1)]

    assert bits_differ(case, compiled, *first, *second, *larger) == []
    assert compiled.captures == 2


def test_streams_and_branches_of_a_checkout_are_those_read_by_hand(
    case: TableCase, golden: Callable[[str, str], None]
) -> None:
    args, kwargs = case.inputs(0, 900.0)
    _, captured = capture(case.model, args, kwargs)
    program = residual_program(case.model, captured, tag_inputs(captured, case.conditions))

    golden(f"checkout_{case.name}", printed(case, program))


@pytest.mark.parametrize(
    "policy",
    [policies.first_block_cache(threshold=1e9), policies.asymmetric(threshold=1e9)],
    ids=["first_block_cache", "asymmetric"],
)
def test_a_skipped_step_of_a_checkout_equals_the_full_one(
    case: TableCase, policy: synccache.Policy
) -> None:
    compiled = synccache.compile(case.model, policy, conditions=case.conditions)
    found = []
    for timestep in (900.0, 900.0 - 2**-14):  # another step, to the gate; the same to the model
        args, kwargs = case.inputs(0, timestep)
        found.append(tensors(compiled(*args, **kwargs)))

    assert compiled.stats().decisions == {0: "CS"}
    for full, skipped in zip(*found, strict=True):
        assert (full - skipped).abs().max() <= ROUNDING * full.abs().max()


def test_audio_merged_into_text_of_a_checkout_can_be_kept_apart(case: TableCase) -> None:
    if case.name != "fantasytalking":
        pytest.skip(f"{case.name} merges nothing")
    policy = policies.asymmetric(threshold=1e9)
    compiled = synccache.compile(case.model, policy, conditions=case.conditions, split=("audio",))
    found = []
    for timestep in (900.0, 900.0 - 2**-14):
        args, kwargs = case.inputs(0, timestep)
        found.append(tensors(compiled(*args, **kwargs)))
    reads = [b.reads for b in compiled.program.branches if b.block == 1 and "audio" in b.reads]

    assert reads == [frozenset({"audio"})]
    assert compiled.stats().decisions == {0: "CS"}
    for full, skipped in zip(*found, strict=True):
        assert (full - skipped).abs().max() <= ROUNDING * full.abs().max()
