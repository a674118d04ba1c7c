"""Branches that merge audio with text, taken apart where a policy cuts there, and only there."""

import pytest
import torch
from generated_recipes import Recipe, RecipeCase, Shape, Write, build

import synccache
from synccache import policies
from synccache.errors import MatchError, PolicyError
from synccache.policies.dsl import AUDIO, Policy, Rule, Selector, Steps, blocks, branches

ROUNDING = 2e-6  # of float32, two blocks behind a split
MERGED = (("self", "merged", "mlp"),) * 3
LIVE_AUDIO = branches.after(blocks[0]) - branches.reading(AUDIO)


def recipe(*, gated: bool = True, parts: tuple[tuple[str, ...], ...] = MERGED) -> RecipeCase:
    return build(Recipe(Shape.LINE, parts, 2, Write.PLUS, "tensors", gated, False, seed=4))


def every_second(skip: Selector, letters: str = "CS") -> Policy:
    return Policy("every second", (Rule(skip, Steps(letters)),))


@pytest.mark.parametrize("gated", [True, False])
@torch.no_grad()
def test_a_policy_can_keep_the_audio_part_and_skip_the_text_part(gated: bool) -> None:
    case = recipe(gated=gated)
    compiled = synccache.compile(case.model, every_second(LIVE_AUDIO), split=("audio",))
    first = compiled(*case.inputs(0, 900.0))
    reads = [(b.block, b.kind.value, b.reads - {"timestep"}) for b in compiled.program.branches]
    skipped = {b.index for r in compiled.variant.layout.regions for b in r.branches}

    assert reads[3:7] == [
        (1, "attention", frozenset()),
        (1, "attention", frozenset({"text"})),
        (1, "attention", frozenset({"audio"})),
        (1, "mlp", frozenset()),
    ]
    assert [b.reads - {"timestep"} for b in compiled.program.branches if b.index not in skipped] == [
        frozenset(), {"audio", "text"}, frozenset(), {"audio"}, {"audio"},
    ]  # fmt: skip
    compiled.graph_module.graph.lint()
    again = compiled(*case.inputs(0, 900.0 - 2**-14))
    assert compiled.stats().decisions == {0: "CS"}
    assert (first - again).abs().max() <= ROUNDING * first.abs().max()


@torch.no_grad()
def test_on_a_skipped_step_the_audio_part_follows_the_stream() -> None:
    case = recipe()
    compiled = synccache.compile(case.model, every_second(LIVE_AUDIO), split=("audio",))
    whole = synccache.compile(case.model, every_second(LIVE_AUDIO))
    silent = synccache.compile(case.model, every_second(LIVE_AUDIO | blocks[1:]))
    outputs = {}
    for name, model in (("split", compiled), ("whole", whole), ("silent", silent)):
        model(*case.inputs(0, 900.0))
        outputs[name] = model(*case.inputs(2, 800.0))

    # text is held in one and computed in the other; audio is held in the third
    assert not torch.equal(outputs["split"], outputs["whole"])
    assert not torch.equal(outputs["split"], outputs["silent"])


@torch.no_grad()
def test_a_computed_step_with_a_split_equals_the_model_but_for_rounding() -> None:
    case = recipe()
    compiled = synccache.compile(case.model, every_second(LIVE_AUDIO, "CC"), split=("audio",))
    compiled(*case.inputs(0, 900.0))
    for seed, timestep in ((2, 800.0), (4, 700.0)):
        expected = case.model(*case.inputs(seed, timestep))
        found = compiled(*case.inputs(seed, timestep))
        assert (expected - found).abs().max() <= ROUNDING * expected.abs().max()

    assert compiled.variant.captured.split == ("blocks.1.parts.1.body", "blocks.2.parts.1.body")


@torch.no_grad()
def test_without_split_a_policy_that_cuts_there_keeps_the_models_bits() -> None:
    case = recipe()
    compiled = synccache.compile(case.model, every_second(LIVE_AUDIO, "CC"))
    compiled(*case.inputs(0, 900.0))

    assert torch.equal(case.model(*case.inputs(2, 800.0)), compiled(*case.inputs(2, 800.0)))
    assert compiled.variant.captured.split == ()


def test_exact_refuses_to_split() -> None:
    with pytest.raises(PolicyError, match="keeps the model's bits"):
        synccache.compile(recipe().model, "exact", split=("audio",))


@torch.no_grad()
def test_a_policy_that_cuts_no_merged_branch_is_told_so() -> None:
    case = recipe()
    compiled = synccache.compile(case.model, policies.first_block_cache(), split="audio")
    with pytest.raises(MatchError, match="all or nothing of each of the 3 branches"):
        compiled(*case.inputs(0))


@torch.no_grad()
def test_a_model_without_merged_branches_is_told_so() -> None:
    case = recipe(parts=(("self", "audio", "mlp"),) * 2)
    compiled = synccache.compile(case.model, every_second(LIVE_AUDIO), split=("audio",))
    with pytest.raises(MatchError, match="of 2 branches that read it, none is linear"):
        compiled(*case.inputs(0))
