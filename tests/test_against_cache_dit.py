"""cache-dit's DBCache as released and as policies: the same decisions and outputs.

Wan, FLUX and HunyuanVideo, with and without blocks at the end that always run, with a limit of skips
in a row, and with a static step mask (SCM).
"""

from typing import Any

import cache_dit
import pytest
import torch
from cache_dit import DBCacheConfig
from loops import difference
from peers import BRANCHES, STEPS, Ran, by_branch, letters, loop, plain, run_ours
from table_models import build

import synccache
from synccache import policies
from synccache.policies.dsl import LAST_COMPUTED, Policy, Rule, blocks, mask, relative_l1, residual
from synccache.policies.dsl import step as step_number

ONE = BRANCHES[:1]
INNER = {
    "wan_t2v": "blocks.2.attn1",
    "flux": "single_transformer_blocks.1.attn",
    "hunyuan_video": "single_transformer_blocks.1.attn",
}
ROUNDING = 1e-6


def run_theirs(
    name: str,
    branches: tuple[str, ...],
    *,
    times: int = 1,
    refresh: bool = False,
    steps: int = STEPS,
    **config: Any,
) -> list[Ran]:
    """Several clips, one after another, through one model with DBCache."""
    case = build(name)
    inner = case.model.get_submodule(INNER[name])
    config |= {"num_inference_steps": steps, "enable_separate_cfg": len(branches) > 1}
    cache_dit.enable_cache(case.model, cache_config=DBCacheConfig(Fn_compute_blocks=1, **config))
    found = []
    with letters(inner) as watched:
        for _ in range(times):
            if refresh:
                cache_dit.refresh_context(case.model, num_inference_steps=steps)
            call = watched(case.model)
            outputs = loop(case, call, plain, branches=branches, steps=steps)
            found.append(Ran(by_branch(call.letters, branches), outputs))
    return found


@pytest.mark.parametrize(("name", "branches"), [("wan_t2v", BRANCHES), ("flux", ONE)])
@pytest.mark.parametrize("back", [0, 1])
def test_dbcache_decides_and_computes_as_in_cache_dit(
    name: str, branches: tuple[str, ...], back: int
) -> None:
    (theirs,) = run_theirs(
        name,
        branches,
        Bn_compute_blocks=back,
        residual_diff_threshold=0.35,
        max_warmup_steps=2,
        max_continuous_cached_steps=2,
    )
    policy = policies.dbcache(0.35, front=1, back=back, warmup=2, max_skips=2)
    ours = run_ours(build(name), policy, branches=branches)

    assert theirs.decisions == ours.decisions
    assert set(ours.decisions["cond"]) == {"C", "S"}
    assert difference(theirs.outputs, ours.outputs) <= ROUNDING


def test_two_lists_of_blocks_are_two_rules_with_a_probe_each() -> None:
    """On HunyuanVideo cache-dit gates double and single blocks apart, each list by its first block.

    Its probe of the single blocks is the picture's half of their joint stream; ours reads the whole
    stream, so a mask takes the text's tokens out.
    """
    pictures, texts, limit = 32, 6, 0.35
    (theirs,) = run_theirs("hunyuan_video", ONE, residual_diff_threshold=limit, max_warmup_steps=2)
    text = mask("text", inside=0.0)
    double = relative_l1(residual(blocks[0]), since=LAST_COMPUTED)
    single = relative_l1(residual(blocks[3]), since=LAST_COMPUTED, weight=text)
    rules = (
        Rule(blocks[1:3], (double < limit) & (step_number >= 2)),
        Rule(blocks[4:], (single < limit) & (step_number >= 2)),
    )
    case, tokens = build("hunyuan_video"), torch.arange(pictures + texts)
    compiled = synccache.compile(
        case.model,
        Policy("dbcache by list", rules),
        conditions=case.conditions,
        masks={"text": (tokens >= pictures).float()},
    )
    found = loop(case, compiled, lambda name, _: compiled.cache_context(name), branches=ONE)

    assert "S" in theirs.decisions["cond"]
    assert theirs.decisions == compiled.stats().decisions
    assert difference(theirs.outputs, found) <= ROUNDING


def test_a_static_step_mask_computes_and_skips_as_in_cache_dit() -> None:
    ultra = "1111001000001000000100000001"[:STEPS]  # cache-dit's shortest mask, for 28 steps
    (theirs,) = run_theirs(
        "wan_t2v",
        BRANCHES,
        steps_computation_mask=[int(letter) for letter in ultra],
        steps_computation_policy="static",
    )
    marks = ultra.replace("1", "C").replace("0", "S")
    ours = run_ours(build("wan_t2v"), policies.step_mask(marks, skip=blocks[1:]))

    assert {"cond": marks, "uncond": marks} == theirs.decisions == ours.decisions
    assert difference(theirs.outputs, ours.outputs) <= ROUNDING


def test_every_clip_is_decided_like_the_first() -> None:
    """A bug of cache-dit 1.5.3, and why clips are compared after ``refresh_context`` only.

    On a bare transformer (a loop of one's own, no pipeline) its step counter starts one step late in
    each further clip, so clip k begins with k - 1 steps that reuse the clip before. Ours begins
    anew when the timestep jumps back up.
    """
    config = {"residual_diff_threshold": 0.9, "max_warmup_steps": 3}
    late = run_theirs("wan_t2v", ONE, times=3, steps=6, **config)
    refreshed = run_theirs("wan_t2v", ONE, times=3, steps=6, refresh=True, **config)
    case = build("wan_t2v")
    compiled = synccache.compile(case.model, policies.dbcache(0.9, front=1, warmup=3))
    found = [loop(case, compiled, plain, branches=ONE, steps=6) for _ in range(3)]

    assert [clip.decisions["cond"] for clip in late] == ["CCCSSS", "SCCCSS", "SSCCCS"]
    assert [clip.decisions["cond"] for clip in refreshed] == ["CCCSSS"] * 3
    for clip, theirs in zip(found, refreshed, strict=True):
        assert difference(theirs.outputs, clip) <= ROUNDING
