"""Loops as callers write them: buffers written in place, calls in another order, masks of all sizes."""

import pytest
import torch
from small_models import TOKENS, normal, talking, voices
from torch import Tensor, nn

import synccache
from synccache import policies
from synccache.errors import MatchError, PolicyError, StateError
from synccache.fx.masks import token_masks
from synccache.policies.dsl import (
    LAST_COMPUTED,
    PREVIOUS,
    Linear,
    Policy,
    Probe,
    Rule,
    blocks,
    entering,
    forecast,
    latent,
    modulated,
    output,
    relative_l1,
    residual,
    step,
)


class Bare(nn.Module):
    """forward(latents [1, 6, 8], timestep [1]): its stream begins in the caller's own memory."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, latents: Tensor, timestep: Tensor) -> Tensor:
        for block in self.blocks:
            latents = latents + block(latents) * (timestep / 1000)
        return latents


def bare() -> Bare:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Bare().eval().requires_grad_(False)


def run(model: nn.Module, *, in_place: bool, steps: int = 8) -> list[Tensor]:
    """Outputs of every step; ``in_place``: one buffer each for latents, timestep and output."""
    latents, timestep, found = normal(0, 1, 6, 8), torch.zeros(1), []
    for k in range(steps):
        now = torch.tensor([1000.0 * (1 - k / steps)])
        timestep = timestep.copy_(now) if in_place else now
        out = model(latents, timestep)
        found.append(out.clone())
        latents = latents.sub_(0.1 * found[-1]) if in_place else latents - 0.1 * found[-1]
        if in_place:
            out.fill_(9.0)
    return found


PROBES: list[Probe] = [
    entering(blocks[0]), output(blocks[0]), residual(blocks[0]), modulated(blocks[0]), latent,
]  # fmt: skip


@pytest.mark.parametrize("probe", PROBES, ids=str)
@pytest.mark.parametrize("since", [PREVIOUS, LAST_COMPUTED, forecast(Linear())], ids=str)
def test_a_loop_may_write_to_its_buffers_between_calls(probe: Probe, since: object) -> None:
    moved = relative_l1(probe, since=since)  # type: ignore[arg-type]
    policy = Policy("watching", (Rule(blocks[1:], moved <= 0.2),))
    plain, written = (synccache.compile(bare(), policy) for _ in range(2))

    expected, found = run(plain, in_place=False), run(written, in_place=True)

    assert plain.stats().decisions == written.stats().decisions
    assert all(map(torch.equal, expected, found))


def two_branches(compiled: nn.Module, orders: list[tuple[int, int]]) -> None:
    heard, latents = voices(), normal(0, 1, TOKENS, 4)
    for k, order in enumerate(orders):
        for branch in order:
            latents = latents - 0.01 * compiled(
                latents, torch.tensor([1000.0 - 100 * k]), heard[branch]
            )


def test_guidance_branches_called_in_another_order_are_refused() -> None:
    compiled = synccache.compile(talking(), policies.step_mask("CCSSCS"))

    with pytest.raises(StateError, match="guidance branch 0 has the `audio` of branch 1"):
        two_branches(compiled, [(0, 1), (0, 1), (1, 0)])


def test_a_step_without_its_first_guidance_branch_is_refused() -> None:
    compiled = synccache.compile(talking(), policies.step_mask("CCSSCS"))

    with pytest.raises(StateError, match="guidance branch 0 has the `audio` of branch 1"):
        two_branches(compiled, [(0, 1), (1, 0)])


def test_a_new_run_may_call_its_guidance_branches_in_its_own_order() -> None:
    compiled = synccache.compile(talking(), policies.step_mask("CCSSCS"))
    two_branches(compiled, [(0, 1)] * 4)
    two_branches(compiled, [(1, 0)] * 4)

    assert compiled.stats().decisions == {0: "CCSS", 1: "CCSS"}


def test_named_guidance_branches_may_come_in_any_order() -> None:
    compiled, heard = synccache.compile(talking(), policies.step_mask("CCSSCS")), voices()
    for k, order in enumerate([(0, 1), (1, 0), (0, 1), (1, 0)]):
        for branch in order:
            with compiled.cache_context(str(branch)):
                compiled(normal(k, 1, TOKENS, 4), torch.tensor([1000.0 - 100 * k]), heard[branch])

    assert compiled.stats().decisions == {"0": "CCSS", "1": "CCSS"}


def test_a_mask_with_a_name_that_no_rule_reads_is_refused() -> None:
    compiled = synccache.compile(
        talking(), policies.asymmetric(), masks={"persn": torch.ones(TOKENS)}
    )

    with pytest.raises(MatchError, match=r"reads masks\['persn'\]; it reads person"):
        compiled(normal(0, 1, TOKENS, 4), torch.tensor([1000.0]), voices()[0])


def test_a_grid_mask_is_averaged_onto_the_tokens_own_grid() -> None:
    mask = torch.zeros(8, 16, 16)
    mask[:, :8] = 1.0  # the upper half of every frame
    expected = torch.zeros(8, 4, 4)
    expected[:, :2] = 1.0

    found = token_masks({"person": mask}, (1, 8 * 4 * 4), (1, 16, 8, 8, 8))["person"]

    assert torch.equal(found, expected.reshape(1, -1))


@pytest.mark.parametrize(
    ("mask", "stream", "sample"),
    [
        ((81, 480, 832), (1, 21 * 30 * 52), (1, 16, 21, 60, 104)),  # frames of the video
        ((21, 60, 100), (1, 21 * 30 * 52), (1, 16, 21, 60, 104)),  # another width
        ((3, 12), (1, 12), (1, 12, 4)),  # three masks for a batch of one
        ((4, 8, 8), (1, 64), (1, 64, 4)),  # packed tokens: 4 x 4 x 4, or 1 x 8 x 8?
        ((0,), (1, 12), (1, 12, 4)),
    ],
    ids=str,
)
def test_a_mask_of_another_size_is_refused(
    mask: tuple[int, ...], stream: tuple[int, int], sample: tuple[int, ...]
) -> None:
    with pytest.raises(MatchError, match="person"):
        token_masks({"person": torch.ones(mask)}, stream, sample)


def test_tokens_behind_a_mask_are_left_out_of_it() -> None:
    reference_tokens = 30 * 52
    found = token_masks(
        {"person": torch.ones(21, 60, 104)},
        (2, 21 * 30 * 52 + reference_tokens),
        (2, 16, 21, 60, 104),
    )

    assert found["person"].shape == (1, 21 * 30 * 52)


def test_a_rule_without_a_mask_takes_any() -> None:
    policy = Policy("plain", (Rule(blocks[1:], step >= 1),))
    compiled = synccache.compile(talking(), policy, masks={"person": torch.ones(TOKENS)})

    two_branches(compiled, [(0, 1)] * 2)

    assert compiled.stats().decisions == {0: "CS", 1: "CS"}


def test_a_run_whose_timesteps_rise_says_what_it_needs() -> None:
    compiled, heard = synccache.compile(talking(), policies.step_mask("CCSS")), voices()
    for begin in (False, True):
        if begin:
            compiled.begin(steps=4, branches=1)
        for k in range(4):
            compiled(normal(k, 1, TOKENS, 4), torch.tensor([100.0 * k]), heard[0])
        if not begin:
            assert "Where timesteps rise within a run" in compiled.stats().note

    assert compiled.stats().decisions == {0: "CCSS"}


def test_two_buffers_of_latents_may_take_turns() -> None:
    compiled, heard = synccache.compile(talking(), policies.step_mask("CCSSCS")), voices()
    buffers = normal(0, 1, TOKENS, 4), normal(1, 1, TOKENS, 4)
    for k in range(6):  # the second guidance branch begins late, with the other buffer
        for branch in range(2 if k % 2 else 1):
            compiled(buffers[k % 2], torch.tensor([1000.0 - 100 * k]), heard[branch])

    assert compiled.stats().decisions == {0: "CCSSCS", 1: "CSS"}


def test_a_compiled_model_is_not_compiled_again() -> None:
    compiled = synccache.compile(talking(), "exact")

    with pytest.raises(PolicyError, match="compiled already, with exact"):
        synccache.compile(compiled, "first_block_cache")
