"""The worked examples of the published methods, by hand and compiled, on a model of single numbers.

Numbers: caching-policy reference, sections 1.1, 1.5, 1.6 and 3.2 (each worked out by hand there).
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from generated_models import Branch, ByHand
from loops import timesteps
from reference_interpreter import Interpreter
from torch import Tensor, nn

import synccache
from synccache import policies
from synccache.policies.dsl import (
    ATTENTION,
    MLP,
    PREVIOUS,
    Policy,
    Polynomial,
    Rule,
    Steps,
    accumulated,
    blocks,
    branches,
    mask,
    output,
    relative_l1,
    segments,
    steps_left,
)


class Numbers(nn.Module):
    """x += f0(x); x += f1(x); x += audio * injector(x); x += f2(x), with f(x) = weight * x + bias."""

    def __init__(self, *lines: tuple[float, float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(1, 1).double() for _ in lines])
        self.injector = nn.Linear(1, 1, bias=False).double()
        with torch.no_grad():
            for block, (weight, bias) in zip(self.blocks, lines, strict=True):
                block.weight.fill_(weight)
                block.bias.fill_(bias)
            self.injector.weight.fill_(0.1)

    def forward(self, latents: Tensor, timestep: Tensor, audio: Tensor) -> Tensor:
        x = latents
        for index, block in enumerate(self.blocks):
            x = x + block(x)
            if index == 1:
                x = x + audio * self.injector(x)
        return x

    def by_hand(self, latents: Tensor, timestep: Tensor, audio: Tensor) -> ByHand:
        def branch(version: int, block: int, f: Callable[[Tensor], Tensor], *reads: str) -> Branch:
            kind = ATTENTION if reads else MLP
            before = (("video", version),)
            return Branch("video", block, frozenset(reads), kind, before, f, torch.add)

        parts = [branch(0, 0, self.blocks[0]), branch(1, 1, self.blocks[1])]
        parts.append(branch(2, 1, lambda x: audio * self.injector(x), "audio"))
        parts += [branch(3 + i, 2 + i, block) for i, block in enumerate(self.blocks[2:])]
        return ByHand({"video": latents}, tuple(parts), (("video", len(parts)),), lambda x: x)


class ByCompiler:
    """A compiled model with the interpreter's face."""

    def __init__(self, model: nn.Module, policy: Policy, masks: Any = None, steps: Any = None):
        self.compiled = synccache.compile(model, policy, masks=masks)
        if steps is not None:
            self.compiled.begin(steps=steps)

    def __call__(self, *args: Any) -> Any:
        return self.compiled(*args)

    @property
    def decisions(self) -> dict[Any, str]:
        return self.compiled.stats().decisions


both = pytest.mark.parametrize("way", [Interpreter, ByCompiler], ids=["by hand", "compiled"])


def ran(runner: Any, latents: list[Any], audio: float = 0.0) -> tuple[str, list[float]]:
    """Decisions, and the first token of each output."""
    found = []
    for timestep, values in zip(timesteps(len(latents)), latents, strict=True):
        x = torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1)
        heard = torch.full((1, 1, 1), audio, dtype=torch.float64)
        with torch.no_grad():
            found.append(float(runner(x, torch.tensor([timestep]), heard)[0, 0, 0]))
    return runner.decisions[0], found


@both
def test_first_block_cache(way: Any) -> None:
    model = Numbers(
        (-0.5, 7.0), (1.0, -4.0), (0.0, 0.0)
    )  # q = 2, 2.1, ...; the rest adds 8 at first
    runner = way(model, policies.first_block_cache(threshold=0.1))
    decisions, found = ran(runner, [10, 9.8, 9.7, 9.5, 9.4])

    assert decisions == "CSSCS"
    assert found[:2] == pytest.approx([20.0, 19.9])


@both
def test_dbcache_with_one_front_block_decides_alike_on_these_numbers(way: Any) -> None:
    model = Numbers((-0.5, 7.0), (1.0, -4.0), (0.0, 0.0))
    runner = way(model, policies.dbcache(threshold=0.1, front=1, back=1, warmup=1))

    assert ran(runner, [10, 9.8, 9.7, 9.5, 9.4])[0] == "CSSCS"


@both
@pytest.mark.parametrize(("inside", "decided"), [(1.0, "CSSCS"), (2.0, "CSCSS")])
def test_the_person_weighted_probe_refreshes_one_step_earlier(
    way: Any, inside: float, decided: str
) -> None:
    moved = relative_l1(output(blocks[0]), since=PREVIOUS, weight=mask("person", inside=inside))
    policy = Policy("probe", (Rule(blocks[1:], accumulated(moved) <= 0.1),))
    model = Numbers((0.0, 0.0), (1.0, 0.0), (1.0, 0.0))
    runner = way(model, policy, masks={"person": torch.tensor([1.0, 0.0])})
    probes = [[4, 6], [4.4, 6], [4.8, 6.06], [5.4, 6.06], [5.5, 6.1]]

    assert ran(runner, probes)[0] == decided


@both
def test_live_audio_runs_on_the_approximated_stream(way: Any) -> None:
    model = Numbers((0.0, 0.0), (0.4, 0.0), (0.0, 4.6))
    live = segments(branches.after(blocks[0]) - branches.reading("audio"))
    runner = way(model, policies.step_mask("CS", skip=live))

    assert ran(runner, [10, 9.5], audio=1.0) == ("CS", pytest.approx([20.0, 19.45]))


@both
def test_the_whole_stack_residual_is_the_other_choice(way: Any) -> None:
    model = Numbers((0.0, 0.0), (0.4, 0.0), (0.0, 4.6))
    runner = way(model, policies.step_mask("CS", skip=branches.after(blocks[0])))

    assert ran(runner, [10, 9.5], audio=1.0) == ("CS", pytest.approx([20.0, 19.5]))


@both
@pytest.mark.parametrize(
    ("coefficients", "threshold", "decided"),
    [((1.0, 0.0), 0.10, "CSSSCC"), ((2.0, 0.0, 0.01), 0.03, "CSSCSC")],
)
def test_a_polynomial_of_the_change_is_summed(
    way: Any, coefficients: tuple[float, ...], threshold: float, decided: str
) -> None:
    moved = relative_l1(output(blocks[0]), since=PREVIOUS)
    small = accumulated(Polynomial(moved, coefficients)) < threshold
    policy = Policy("like teacache", (Rule(blocks[1:], small & (steps_left > 0)),))
    model = Numbers((0.0, 0.0), (1.0, 0.0), (1.0, 0.0))
    runner = way(model, policy, steps=6)

    assert ran(runner, [10, 10.4, 10.9, 11, 11.6, 12])[0] == decided


@both
@pytest.mark.parametrize(
    ("letters", "decided"), [("CSSCS", "CSSCSSS"), ("C", "CCCCCCC"), ("S", "CSSSSSS")]
)
def test_a_step_masks_last_letter_holds_on_and_nothing_held_means_compute(
    way: Any, letters: str, decided: str
) -> None:
    model = Numbers((0.0, 0.0), (1.0, 0.0), (1.0, 0.0))
    runner = way(model, Policy("mask", (Rule(blocks[1:], Steps(letters)),)))

    assert ran(runner, [1, 2, 3, 4, 5, 6, 7])[0] == decided
