"""The library's methods that work module by module: which steps they skip, and what they hold."""

import pytest
import torch
from generated_blocks import Audio, Spec
from generated_models import build
from loops import timesteps

import synccache
from synccache import policies
from synccache.policies.dsl import AUDIO, TEXT, Policy, branches

SELF = branches.attention - branches.reading(TEXT)
CROSS = branches.attention & branches.reading(TEXT)


def decisions(policy: Policy, steps: int) -> str:
    case = build(Spec(audio=Audio.NONE, blocks=2))
    compiled = synccache.compile(case.model, policy)
    compiled.begin(steps=steps)
    for k, timestep in enumerate(timesteps(steps)):
        args, kwargs = case.new_inputs(k, timestep)
        with torch.no_grad():
            compiled(*args, **kwargs)
    return compiled.stats().decisions[0]


@pytest.mark.parametrize(
    ("policy", "letters"),
    [
        (policies.fora(3), "CCSSCSSC"),
        (policies.taylorseer(5, first=1), "CSSSSCSSSSCS"),
        (policies.taylorseer(5, first=3), "CCCSSSSCSSSS"),
        (policies.hicache(6, first=3), "CCCSSSSSCSSS"),
        (policies.pab(((branches.attention, 3),), window=(-1, 1001)), "CSSCSS"),
        (policies.pab(((SELF, 2), (CROSS, 3)), window=(-1, 1001)), "CSSSSSCS"),
        (policies.pab(((branches.attention, 2),), window=(100, 500)), "CCCCCSCS"),
        (policies.speca(first=3, longest=2, shortest=9), "CSCSSCSSC"),
    ],
    ids=str,
)
def test_published_schedules(policy: Policy, letters: str) -> None:
    assert letters == decisions(policy, len(letters))


@pytest.mark.parametrize(
    ("method", "factor"),
    [("fora", 1), ("taylorseer", 2), ("hicache", 4), ("speca", 2)],
)
@pytest.mark.parametrize("blocks", [2, 3])
def test_every_module_holds_as_many_tensors_as_published(
    method: str, factor: int, blocks: int
) -> None:
    modules_a_block = 3  # self-attention, cross-attention, MLP: M of the published tables
    case = build(Spec(audio=Audio.NONE, blocks=blocks))
    compiled = synccache.compile(case.model, policies.by_name(method))
    compiled.begin(steps=30)
    for k, timestep in enumerate(timesteps(30)):
        args, kwargs = case.new_inputs(k, timestep)
        with torch.no_grad():
            compiled(*args, **kwargs)
    (state,) = compiled._trajectories[None].branches.values()

    assert factor * modules_a_block * blocks == sum(len(h) for h in state.held.values())


def test_pab_holds_one_tensor_for_each_attention() -> None:
    case = build(Spec(audio=Audio.OWN, blocks=3))
    compiled = synccache.compile(case.model, policies.pab(((branches.reading(AUDIO), 2),)))
    args, kwargs = case.new_inputs(0, 900.0)
    with torch.no_grad():
        compiled(*args, **kwargs)
    (state,) = compiled._trajectories[None].branches.values()

    assert [len(h) for h in state.held.values()] == [1, 1, 1]
