"""Windows that slide over a long clip: what is held goes with the frame, not with the place."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import TOKENS, normal, talking, voices
from torch import Tensor, nn

import synccache
from synccache import CachedModel, policies
from synccache.errors import StateError
from synccache.policies.dsl import (
    LAST_COMPUTED,
    PREVIOUS,
    Policy,
    Rule,
    blocks,
    lagged,
    mask,
    network,
    output,
    prediction,
    relative_l1,
    skips,
    step,
)

CLIP, PER_FRAME, WIDTH = 6, 3, 8


class PerFrame(nn.Module):
    """forward(latents [1, tokens, 8], timestep [1]): no token sees another."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, latents: Tensor, timestep: Tensor) -> Tensor:
        hidden = latents * 1.0
        for block in self.blocks:
            hidden = hidden + torch.tanh(block(hidden)) * (timestep / 1000)
        return hidden


def per_frame() -> PerFrame:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PerFrame().eval().requires_grad_(False)


def taken(clip: Tensor, frames: Sequence[int]) -> Tensor:
    return clip.unflatten(1, (CLIP, PER_FRAME))[:, list(frames)].flatten(1, 2)


def shifted(step: int, shift: int, window: int, clip: int = CLIP) -> list[list[int]]:
    """The windows of a step, which together are the clip: they wrap around."""
    order = [(i + shift * step) % clip for i in range(clip)]
    return [order[i : i + window] for i in range(0, clip, window)]


def sampled(
    compiled: CachedModel, shift: int, window: int, steps: int, roll: int = 0
) -> tuple[Tensor, list[Tensor]]:
    """The clip after a loop, and every step's output; both by frame, the clip rolled by ``roll``."""
    clip, found = normal(5, 1, CLIP * PER_FRAME, WIDTH), []
    for k in range(steps):
        out = torch.empty_like(clip).unflatten(1, (CLIP, PER_FRAME))
        for frames in shifted(k, shift, window):
            own = [(f + roll) % CLIP for f in frames]
            with compiled.frames(own, tokens=PER_FRAME):
                call = compiled(taken(clip, frames), torch.tensor([1000.0 - 100 * k]))
            out[:, frames] = call.unflatten(1, (len(frames), PER_FRAME))
        found.append(out.flatten(1, 2))
        clip = clip - 0.1 * found[-1]
    return clip, found


def reference(mask: str) -> list[Tensor]:
    """The same loop in plain Python: the residual of blocks 0-2 is kept by frame."""
    model, clip, found = per_frame(), normal(5, 1, CLIP * PER_FRAME, WIDTH), []
    residual: dict[int, Tensor] = {}
    for k, letter in enumerate(mask):
        outs = []
        for frame in range(CLIP):
            own = taken(clip, [frame])
            if letter == "C":
                residual[frame] = model(own, torch.tensor([1000.0 - 100 * k])) - own
            outs.append(own + residual[frame])
        found.append(torch.cat(outs, dim=1))
        clip = clip - 0.1 * found[-1]
    return found


WATCHED = Policy(
    "watched", (Rule(blocks[1:], relative_l1(output(blocks[0]), since=LAST_COMPUTED) <= 0.4),)
)
MASK = "CSSCSC"


@settings(max_examples=8, deadline=None)
@given(shift=st.integers(0, CLIP - 1), window=st.sampled_from([2, 3, 6]))
def test_shifted_windows_are_what_residuals_kept_by_frame_give(shift: int, window: int) -> None:
    compiled = synccache.compile(
        per_frame(),
        policies.step_mask(MASK),
    )

    _, found = sampled(compiled, shift, window, len(MASK))

    letters = compiled.stats().decisions[0]
    assert letters == "".join(letter * (CLIP // window) for letter in MASK)
    for one, expected in zip(found, reference(MASK), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", [WATCHED, policies.taylorseer()], ids=lambda p: p.name)
@settings(max_examples=5, deadline=None)
@given(shift=st.integers(1, CLIP - 1), roll=st.integers(1, CLIP - 1))
def test_rolling_the_frames_with_their_numbers_changes_nothing(
    policy: Policy, shift: int, roll: int
) -> None:
    plain, rolled = (synccache.compile(per_frame(), policy) for _ in range(2))

    expected, found = (sampled(c, shift, 3, 9, r) for c, r in ((plain, 0), (rolled, roll)))

    assert plain.stats().decisions == rolled.stats().decisions
    assert "S" in plain.stats().decisions[0]
    assert torch.equal(expected[0], found[0])


def test_windows_that_stay_decide_as_calls_of_their_own() -> None:
    """Each window sees its own probe: the decisions are those of one run for each."""
    compiled = synccache.compile(per_frame(), WATCHED)
    _, found = sampled(compiled, 0, 3, 8)
    for part, frames in enumerate(([0, 1, 2], [3, 4, 5])):
        alone, clip = synccache.compile(per_frame(), WATCHED), normal(5, 1, 18, WIDTH)
        own = taken(clip, frames)
        for k in range(8):
            out = alone(own, torch.tensor([1000.0 - 100 * k]))
            assert torch.equal(out, taken(found[k], frames))
            own = own - 0.1 * out
        assert compiled.stats().decisions[0][part::2] == alone.stats().decisions[0]


def call(compiled: CachedModel, step: int, frames: list[int]) -> Tensor:
    with compiled.frames(frames, tokens=PER_FRAME):
        latents = taken(normal(step, 1, CLIP * PER_FRAME, WIDTH), frames)
        return compiled(latents, torch.tensor([1000.0 - 100 * step]))


def test_a_frame_of_which_nothing_is_held_forces_compute() -> None:
    compiled = synccache.compile(per_frame(), policies.step_mask("CSSS"))
    for k, frames in enumerate(([0, 1, 2], [1, 2, 3], [1, 2, 3])):
        call(compiled, k, frames)

    assert compiled.stats().decisions == {0: "CCS"}


def test_frames_held_since_different_steps_force_compute() -> None:
    compiled = synccache.compile(per_frame(), policies.step_mask("CCSS"))
    for k, frames in ((0, [0, 1, 2]), (1, [2, 3, 4]), (2, [1, 2, 3])):
        call(compiled, k, frames)

    assert compiled.stats().decisions == {0: "CCC"}


def test_windows_that_overlap_skip_where_all_of_them_computed() -> None:
    """Also with a rule that counts its skips: a frame in two windows counts each step once."""
    rule = Rule(blocks[:], (step >= 1) & (skips < 2))
    compiled = synccache.compile(per_frame(), Policy("counting", (rule,)))
    for k in range(5):
        for frames in ([0, 1, 2, 3], [2, 3, 4, 5]):
            call(compiled, k, frames)

    assert compiled.stats().decisions == {0: "CCSSSSCCSS"}


def test_two_trajectories_of_windows_do_not_see_each_other() -> None:
    compiled = synccache.compile(per_frame(), policies.step_mask("CSCS"))
    alone = [call(compiled, k, shifted(k, 2, 6)[0]) for k in range(4)]
    compiled.reset()
    for k in range(4):
        for key in "ab":
            with compiled.trajectory(key):
                assert torch.equal(call(compiled, k, shifted(k, 2, 6)[0]), alone[k])


def test_guidance_branches_of_windows_are_kept_apart_and_held_bytes_are_as_planned() -> None:
    compiled, heard = synccache.compile(talking(), policies.step_mask("CSCS")), voices()
    for k in range(4):
        for frames in shifted(k, 1, 4, 8):
            for voice in heard:
                with compiled.frames(frames, tokens=2, leading=3, trailing=1):
                    compiled(normal(k, 1, TOKENS, 4), torch.tensor([1000.0 - 100 * k]), voice)

    assert compiled.stats().decisions == {0: "CCSSCCSS", 1: "CCSSCCSS"}
    states = compiled._trajectories[None].branches.values()
    held = sum(t.numel() * 4 for s in states for t in s.by_frame.tensors())
    regions = len(compiled.variant.layout.regions)
    assert held == 2 * regions * (8 * 2 + 3 + 1) * 16 * 4
    assert (
        compiled.variant.guidance_branches == 4
    )  # two windows of two branches: no less is planned


def test_a_call_without_its_frames_is_refused() -> None:
    compiled = synccache.compile(per_frame(), policies.step_mask("CSCS"))
    call(compiled, 0, [0, 1, 2])

    with pytest.raises(StateError, match=r"call 2 .* without compiled.frames"):
        compiled(normal(1, 1, 9, WIDTH), torch.tensor([900.0]))


def test_tokens_that_are_no_whole_frames_are_refused() -> None:
    compiled = synccache.compile(per_frame(), policies.step_mask("CSCS"))

    with (
        pytest.raises(StateError, match=r"\[1, 9, 8\].* expected \[batch, 8, channels\], 2 frames"),
        compiled.frames([0, 1], tokens=4),
    ):
        compiled(normal(1, 1, 9, WIDTH), torch.tensor([900.0]))


def test_another_layout_of_tokens_in_one_trajectory_is_refused() -> None:
    compiled = synccache.compile(per_frame(), policies.step_mask("CSCS"))
    call(compiled, 0, [0, 1, 2])

    found = r"leading=1, trailing=2\) follows calls with tokens=3, leading=0"
    with (
        pytest.raises(StateError, match=found),
        compiled.frames([0, 1], tokens=3, leading=1, trailing=2),
    ):
        compiled(normal(1, 1, 9, WIDTH), torch.tensor([900.0]))


@pytest.mark.parametrize("frames", [[], [0, 0], [-1], [0.5]])
def test_what_are_no_frame_numbers_is_refused(frames: list[int]) -> None:
    compiled = synccache.compile(per_frame(), policies.step_mask("CSCS"))

    with pytest.raises(StateError, match="takes different frame numbers from 0"):
        call(compiled, 0, frames)


FIRST, PERSON = output(blocks[0]), mask("person", inside=4.0)
UNFIT = {
    "skips the whole network": Rule(network, step >= 1),
    "by a mask": Rule(blocks[1:], relative_l1(FIRST, since=PREVIOUS, weight=PERSON) < 0.1),
    "the model's output": Rule(blocks[1:], lagged(relative_l1(prediction, since=PREVIOUS)) < 0.1),
}


@pytest.mark.parametrize("what", UNFIT)
def test_what_cannot_be_kept_by_frame_is_refused(what: str) -> None:
    masks = {"person": torch.ones(9)} if "mask" in what else None
    compiled = synccache.compile(per_frame(), Policy("unfit", (UNFIT[what],)), masks=masks)

    with pytest.raises(StateError, match=what):
        for k in range(3):
            call(compiled, k, [0, 1, 2])


def test_windows_cut_from_one_clip_without_their_frames_are_refused() -> None:
    compiled, clip = synccache.compile(per_frame(), policies.step_mask("CS")), normal(0, 1, 18, 8)
    compiled(clip[:, :9], torch.tensor([1000.0]))

    with pytest.raises(StateError, match=r"begins 72 numbers later.*windows of one clip"):
        compiled(clip[:, 9:], torch.tensor([1000.0]))


def test_guidance_branches_cut_from_one_batch_are_not_taken_for_windows() -> None:
    compiled = synccache.compile(per_frame(), policies.step_mask("CS"))
    for k in range(2):
        for half in normal(0, 2, 9, 8).chunk(2):
            compiled(half, torch.tensor([1000.0 - 100 * k]))

    assert compiled.stats().decisions == {0: "CS", 1: "CS"}
