"""What cannot be captured or matched: an error that names line or node and the way out, or a
recording made again that is counted and reported; never a wrong result."""

from typing import Any

import pytest
import torch
from small_models import TOKENS, normal, talking, voices
from test_fx_hazards import WIDTH, Model, model, same, x_of
from torch import Tensor, nn

import synccache
from synccache.errors import CaptureError, MatchError, VerifyError
from synccache.policies.dsl import Hold, Policy, Rule, Steps, blocks

SKIP = Policy("skip", (Rule(blocks[1:], Steps("CS"), Hold()),))


def test_a_model_without_streams_is_refused_with_the_additions_that_came_closest() -> None:
    small = model(lambda self, x, timestep: self.b(torch.relu(self.a(x)) + 1))
    with pytest.raises(MatchError, match=r"no residual stream was found among \d+ addition.*exact"):
        synccache.compile(small, SKIP)(x_of(0), torch.tensor([1.0]))


def test_blocks_that_are_called_whole_are_named_where_a_policy_needs_what_is_in_them() -> None:
    small = talking()
    for block in small.blocks:
        block.compile(backend="eager")
    compiled = synccache.compile(small, SKIP)
    with pytest.raises(MatchError, match=r"modules are called whole \(the first is `blocks.0`\)"):
        compiled(normal(0, 1, TOKENS, 4), torch.tensor([900.0]), voices()[0])


def test_conditions_that_name_no_input_are_answered_with_the_inputs() -> None:
    compiled = synccache.compile(talking(), SKIP, conditions={"audio": ["audoi"]})
    with pytest.raises(MatchError, match=r"'audoi'.* audio, latents, timestep"):
        compiled(normal(0, 1, TOKENS, 4), torch.tensor([900.0]), voices()[0])


def test_a_branch_that_goes_the_other_way_later_is_counted_and_reported_with_its_line() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        if x.mean() > 0:  # the question
            return self.a(x)
        return self.b(x)

    small = model(forward)
    compiled = synccache.compile(small, "exact")
    for x in (x_of(0).abs(), -x_of(1).abs(), x_of(2).abs()):
        assert same(small(x), compiled(x))

    assert compiled.stats().captures == 2
    assert (
        "again       __bool__ read False, the recorded forward read True (test_bad_input.py:"
        in (compiled.explain())
    )
    assert "if x.mean() > 0:  # the question" in compiled.explain()


def test_a_number_that_changes_every_call_is_refused_with_its_line_and_the_way_out() -> None:
    class Reader(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.mean().item()  # the number

    small: Any = model(lambda self, x: self.b(self.reader(self.a(x))))
    small.reader = Reader()
    compiled = synccache.compile(small, "exact")
    with pytest.raises(CaptureError, match=r"item read .* # the number`.*leaves=\[...\]"):
        for seed in range(9):
            compiled(x_of(seed))

    whole = synccache.compile(small, "exact", leaves=["reader"])
    for seed in range(9):
        assert same(small(x_of(seed)), whole(x_of(seed)))
    assert whole.captures == 1


def test_a_signature_that_changes_every_call_is_refused_by_name() -> None:
    small = model(lambda self, x, scale: self.a(x) * scale)
    compiled = synccache.compile(small, "exact")
    with pytest.raises(CaptureError, match=r"`scale` has another value: 7.5 -> 8.5.*as a tensor"):
        for k in range(40):
            compiled(x_of(0), 0.5 + k)


def test_a_model_that_is_changed_before_every_call_is_refused_by_the_attributes_name() -> None:
    small: Any = model(lambda self, x: self.a(x) * self.scale)
    compiled = synccache.compile(small, "exact")
    with pytest.raises(CaptureError, match=r"the model itself was changed: `scale`"):
        for k in range(40):
            small.scale = float(k)
            assert same(small(x_of(0)), compiled(x_of(0)))


def test_another_signature_is_reported() -> None:
    small = model(lambda self, x: self.a(x))
    compiled = synccache.compile(small, "exact")
    compiled(x_of(0))
    compiled(x_of(0, tokens=7))

    assert f"again       x: [1, 3, {WIDTH}] torch.float32 -> [1, 7, {WIDTH}]" in compiled.explain()


def test_an_attribute_carried_over_is_refused_with_the_way_out() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.before = self.a(x) + getattr(self, "before", 0)
        return self.b(self.before)

    with pytest.raises(CaptureError, match=r"made from its inputs.*Pass such values as arguments"):
        synccache.compile(model(forward), "exact")(x_of(0))


class Forgetful(nn.Module):
    """Called whole, and different on every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


def test_a_leaf_with_a_hidden_side_effect_is_found_by_verification() -> None:
    small: Any = model(lambda self, x: self.b(self.part(self.a(x))))
    small.part = Forgetful()
    compiled = synccache.compile(small, "exact", leaves=["part"])
    with pytest.raises(VerifyError, match=r"side effect .*not deterministic"):
        compiled(x_of(0))


def test_a_leaf_with_a_hidden_side_effect_goes_on_without_verification() -> None:
    """The module itself runs on every call, so its state is what it would be."""
    mine: Any = model(lambda self, x: self.b(self.part(self.a(x))))
    its: Any = model(lambda self, x: self.b(self.part(self.a(x))))
    mine.part, its.part = Forgetful(), Forgetful()
    compiled = synccache.compile(its, "exact", leaves=["part"], verify=False)
    for seed in range(4):
        assert same(mine(x_of(seed)), compiled(x_of(seed)))


def test_an_output_that_is_an_input_stays_one_while_steps_are_skipped() -> None:
    class Returning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.talking = talking()

        def forward(self, latents: Tensor, timestep: Tensor, audio: Tensor) -> Any:
            return self.talking(latents, timestep, audio), latents, audio[:, :1]

    compiled = synccache.compile(Returning(), SKIP)
    for k, timestep in enumerate((900.0, 800.0)):
        latents, audio = normal(k, 1, TOKENS, 4), voices()[0]
        out = compiled(latents, torch.tensor([timestep]), audio)
        assert out[1] is latents
        assert out[2]._base is audio
    assert compiled.stats().decisions == {0: "CS"}
