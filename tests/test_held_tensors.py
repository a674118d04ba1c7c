"""How many tensors each method holds for a guidance branch: the published table, row by row.

H is the size of the hidden state, a latent that of the sample. Where a row differs from the published
implementation, the reason stands beside it.
"""

import pytest
import torch
from generated_blocks import Audio, Spec
from generated_models import CHANNELS, build
from loops import timesteps
from table_models import build as build_released

import synccache
from synccache import policies
from synccache.policies.dsl import TEXT, Linear, Policy, TimeEmbedding, branches

BLOCKS, MODULES = 3, 3
STEPS, RUN = 10, 50  # the first steps of a run
SPEC = Spec(audio=Audio.NONE, blocks=BLOCKS, tokens_per_frame=6)
ATTENTIONS = 2  # in each block: to itself and to the text

# method, hidden-sized tensors, latents
TABLE = {
    "teacache": (policies.teacache(), 2, 0),
    "teacache on Wan": (policies.teacache(probe=TimeEmbedding()), 1, 0),
    "magcache": (policies.magcache(), 1, 0),
    "easycache": (policies.easycache(), 0, 4),
    # published 5 to 6: x of the step before is read by one variant of the error only
    "dicache": (policies.dicache(), 5, 0),
    "first_block_cache": (policies.first_block_cache(), 2, 0),
    "dbcache": (policies.dbcache(front=1, warmup=2), 2, 0),
    "dbcache with a linear forecast": (policies.dbcache(front=1, warmup=2, reuse=Linear()), 3, 0),
    "seacache": (policies.seacache(), 1, 1),
    "seacache, linear": (policies.seacache(reuse=Linear()), 2, 1),
    "avatar_schedule": (policies.avatar_schedule(), 1, 0),
    "fora": (policies.fora(), MODULES * BLOCKS, 0),
    "taylorseer": (policies.taylorseer(), 2 * MODULES * BLOCKS, 0),
    "taylorseer, order 4": (policies.taylorseer(3, order=4, first=3), 5 * MODULES * BLOCKS, 0),
    "taylorseer_lite": (policies.taylorseer_lite(), 3, 0),
    "hicache": (policies.hicache(3), 4 * MODULES * BLOCKS, 0),
    # published 6, 4 needed: both bands are sums of the same three tensors
    "freqca": (policies.freqca(), 3, 0),
    "confidence_taylor": (policies.confidence_taylor(), (3 + 1) + (1 + 1), 0),
    "speca": (policies.speca(longest=4), 2 * MODULES * BLOCKS, 0),
    "clusca": (policies.clusca(), 2 * MODULES * BLOCKS, 0),
    # published 1: each end of the stack keeps its own, so that the stages need not know each other
    "delta_dit": (policies.delta_dit(1), 2, 0),
    "blockdance": (policies.blockdance(2), 1, 0),
    "toca": (policies.toca(), MODULES * BLOCKS, 0),
    "duca": (policies.duca(), MODULES * BLOCKS, 0),
    "pab": (policies.pab(), ATTENTIONS * BLOCKS, 0),
    "pab, text only": (
        policies.pab(((branches.attention & branches.reading(TEXT), 6),)), BLOCKS, 0,
    ),
    "fastercache": (policies.fastercache(), 2 * ATTENTIONS * BLOCKS, 0),
    "asymmetric": (policies.asymmetric(), 2, 0),
    "step_mask": (policies.step_mask("CS"), 1, 0),
    "exact": (policies.exact(), 0, 0),
}  # fmt: skip


@pytest.mark.parametrize(("policy", "hidden", "latents"), TABLE.values(), ids=TABLE)
def test_a_method_holds_as_many_tensors_as_published(
    policy: Policy, hidden: int, latents: int
) -> None:
    case = build(SPEC)
    compiled = synccache.compile(case.model, policy)
    compiled.begin(steps=RUN)
    for k, timestep in enumerate(timesteps(STEPS)):
        args, kwargs = case.new_inputs(k, timestep)
        with torch.no_grad():
            compiled(*args, **kwargs)
    (state,) = compiled._trajectories[None].branches.values()
    kept = [t for held in state.held.values() for t in held.tensors()]
    kept += [t for gate in state.gates.values() for t in gate.tensors()]
    sizes = [t.numel() for t in kept]
    sample = args[0].numel()

    assert hidden == sizes.count(sample // CHANNELS * SPEC.width)
    assert latents == sizes.count(sample)


def test_hunyuan_video_holds_one_tensor_for_each_addition_to_a_stream() -> None:
    """Published: two for each single-stream block (its attention, and the block in all); here one, as
    such a block adds once, and what it adds is all that a skipped step needs of it."""
    case = build_released("hunyuan_video")
    compiled = synccache.compile(case.model, policies.taylorseer(), conditions=case.conditions)
    args, kwargs = case.inputs(seed=0, timestep=900.0, branch=0, size=0)
    with torch.no_grad():
        compiled(*args, **kwargs)
    held = [len(r.runs) for r in compiled.variant.layout.regions]

    double = [2, 1, 1]  # joint attention to the picture and the text; the MLP of each
    assert 3 * double + 3 * [1] == held
