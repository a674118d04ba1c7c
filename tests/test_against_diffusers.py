"""The caches of diffusers as released and as policies: the same decisions and outputs.

Wan, HunyuanVideo and FLUX, 24 steps with two guidance branches; peers.py has the loop. Where a cache
of diffusers does something else than its method, a test here shows it by its smallest case.
"""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import SeaCacheConfig
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS
from loops import difference, tensors
from peers import BRANCHES, STEPS, by_branch, inputs, letters, loop, run_ours, run_peer
from table_models import build

import synccache
from synccache import policies
from synccache.policies.dsl import (
    EACH_BRANCH,
    NEAREST,
    TEXT,
    Condition,
    Fixed,
    Hold,
    Linear,
    Policy,
    Predictor,
    Rule,
    Taylor,
    between,
    blocks,
    branches,
    every,
    modules,
    network,
    step,
    timestep,
    values,
)

INNER = {  # runs on computed steps only
    "wan_t2v": "blocks.1.attn1",
    "hunyuan_video": "transformer_blocks.1.attn",
    "flux": "transformer_blocks.1.attn",
}
ROUNDING = 1e-6  # of float32, through the layers behind

models = pytest.mark.parametrize("name", INNER)


def assert_same(theirs: Any, ours: Any) -> None:
    assert theirs.decisions == ours.decisions
    assert set(ours.decisions["cond"]) == {"C", "S"}
    assert difference(theirs.outputs, ours.outputs) <= ROUNDING


@models
def test_first_block_cache_decides_and_computes_as_in_diffusers(name: str) -> None:
    threshold = 0.35
    theirs = run_peer(build(name), FirstBlockCacheConfig(threshold=threshold), watch=INNER[name])

    assert_same(theirs, run_ours(build(name), policies.first_block_cache(threshold)))


@models
def test_magcache_decides_and_computes_as_in_diffusers(name: str) -> None:
    config = MagCacheConfig(
        threshold=0.12, max_skip_steps=3, num_inference_steps=STEPS, mag_ratios=FLUX_MAG_RATIOS
    )
    theirs = run_peer(build(name), config, watch=INNER[name])
    ratios = tuple(FLUX_MAG_RATIOS.tolist())
    policy = policies.magcache(0.12, ratios=ratios, max_skips=3, rounding=NEAREST)

    assert_same(theirs, run_ours(build(name), policy))


@pytest.mark.parametrize("name", ["wan_t2v", "hunyuan_video"])
@pytest.mark.parametrize(("order", "reuse"), [(0, Hold()), (1, Linear())])
def test_seacache_decides_and_computes_as_in_diffusers(
    name: str, order: int, reuse: Predictor
) -> None:
    """Each guidance branch decides for itself: theirs remembers a decision within a context only.

    FLUX is left out: its sample is a list of tokens, and a spectrum needs the grid that both SeaCacheConfig
    (through a callback) and spectral(...) would have to be told.
    """
    config = SeaCacheConfig(
        threshold=0.2,
        residual_order=order,
        raw_vision_callback=lambda _, args, kwargs: list(kwargs["hidden_states"].unbind(0)),
    )
    theirs = run_peer(build(name), config, watch=INNER[name])
    policy = policies.seacache(0.2, reuse=reuse).with_(leader=EACH_BRANCH)

    assert_same(theirs, run_ours(build(name), policy))


# ---- TaylorSeer


def schedule(first: int = 3, interval: int = 5) -> Condition:
    """diffusers': the first skip follows ``first`` full steps, the next full one is one step later.

    Upstream computes interval steps behind the last of the first full ones instead:
    ``policies.taylorseer(interval, first=first)``.
    """
    return (step >= first) & ~every(step, interval, first + 1)


@models
@pytest.mark.parametrize("order", [1, 2])
def test_taylorseer_lite_decides_and_computes_as_in_diffusers(name: str, order: int) -> None:
    """Theirs forecasts the last projection, which a reshape away is the output of the network."""
    config = TaylorSeerCacheConfig(
        use_lite_mode=True, max_order=order, taylor_factors_dtype=torch.float32
    )
    theirs = run_peer(build(name), config, watch=INNER[name])
    policy = Policy("lite", (Rule(values(network), schedule(), Taylor(order)),))

    assert_same(theirs, run_ours(build(name), policy))


MODULES = {
    "wan_t2v": [r"blocks.*(attn1|attn2|ffn)"],
    "hunyuan_video": [
        r"transformer_blocks.*(attn|ff|ff_context)",
        r"single_transformer_blocks.*\d\.proj_out",
    ],
    "flux": [
        r"transformer_blocks.*(attn|ff|ff_context)",
        r"single_transformer_blocks.*\d\.proj_out",
    ],
}


@models
def test_taylorseer_of_every_module_computes_as_in_diffusers(name: str) -> None:
    """In single-stream blocks the module is the last projection: what the block adds, before its gate.

    diffusers' default hooks the attention in them, whose output is only a part of what is projected;
    then the MLP beside it still runs, and no residual branch is forecast.
    """
    config = TaylorSeerCacheConfig(
        max_order=2, cache_identifiers=MODULES[name], taylor_factors_dtype=torch.float32
    )
    theirs = run_peer(build(name), config, watch=f"{INNER[name]}.to_q")
    policy = Policy("modules", (Rule(modules(branches), schedule(), Taylor(2)),))

    assert_same(theirs, run_ours(build(name), policy))


def test_taylorseer_of_diffusers_finds_nothing_to_do_on_wan_and_says_nothing() -> None:
    """A bug of theirs: the default patterns must match to the end, and Wan's modules are attn1, attn2."""
    plain = loop(build("wan_t2v"), build("wan_t2v").model, lambda *_: nullcontext())
    theirs = run_peer(build("wan_t2v"), TaylorSeerCacheConfig(), watch="blocks.1.attn1.to_q")

    assert {"C" * STEPS} == set(theirs.decisions.values())
    assert difference(plain, theirs.outputs) == 0


# ---- PAB

SELF_RANGE, CROSS_RANGE, WINDOW = 2, 3, (100, 800)


def run_pab(name: str, only: str, guidance: tuple[str, ...] = BRANCHES[:1]) -> Any:
    """Outputs of the loop under PAB, and the letters of one self- and one cross-attention."""
    case = build(name)
    unit = 1000.0 if name == "flux" else 1.0  # FLUX takes the noise level itself
    now: list[float] = []
    case.model.enable_cache(
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=SELF_RANGE,
            cross_attention_block_skip_range=CROSS_RANGE,
            spatial_attention_block_identifiers=(only,),
            cross_attention_block_identifiers=(only,),
            current_timestep_callback=lambda: now[-1],
        )
    )

    def call(**kwargs: Any) -> Any:
        now.append(float(kwargs["timestep"][0]) * unit)
        return case.model(**kwargs)

    inner = case.model.get_submodule(f"{INNER[name]}.to_q")
    with letters(inner) as watched:
        watching = watched(call)
        found = loop(case, watching, lambda n, _: case.model.cache_context(n), branches=guidance)
    return by_branch(watching.letters, guidance), found


def test_pab_on_self_and_cross_attention_decides_and_computes_as_in_diffusers() -> None:
    """One guidance branch: see below for what theirs does with two."""
    decided, outputs = run_pab("wan_t2v", "^blocks")
    inside = between(timestep, *WINDOW)
    crossing = branches.attention & branches.reading(TEXT)
    own = Rule(modules(branches.attention - crossing), inside & ~every(step, SELF_RANGE))
    cross = Rule(modules(crossing), inside & ~every(step, CROSS_RANGE))
    alone = run_ours(build("wan_t2v"), Policy("own", (own,)), branches=BRANCHES[:1])
    ours = run_ours(build("wan_t2v"), Policy("pab", (own, cross)), branches=BRANCHES[:1])

    assert decided == alone.decisions
    assert set(decided["cond"]) == {"C", "S"}
    assert difference(outputs, ours.outputs) <= ROUNDING


@pytest.mark.parametrize(("name", "doubles"), [("hunyuan_video", 3), ("flux", 2)])
def test_pab_on_joint_attention_decides_and_computes_as_in_diffusers(
    name: str, doubles: int
) -> None:
    """In the double-stream blocks, whose attention is a residual branch of each of the two streams."""
    decided, outputs = run_pab(name, "^transformer_blocks")
    window = tuple(limit / (1000 if name == "flux" else 1) for limit in WINDOW)
    when = between(timestep, *window) & ~every(step, SELF_RANGE)
    policy = Policy("pab", (Rule(modules(branches.attention & blocks[:doubles]), when),))
    ours = run_ours(build(name), policy, branches=BRANCHES[:1])

    assert decided == ours.decisions
    assert set(decided["cond"]) == {"C", "S"}
    assert difference(outputs, ours.outputs) <= ROUNDING


def test_pab_of_diffusers_gives_one_guidance_branch_the_attention_of_the_other() -> None:
    """A bug of theirs, and why PAB is compared on one branch: its state knows no cache context.

    Two calls a step, the same latents, different prompts, range 2: the conditional call computes, and
    the unconditional one takes what was computed for the conditional one. Ours keeps them apart.
    """
    crossing = branches.attention & branches.reading(TEXT)
    policy = Policy("pab", (Rule(modules(crossing), between(timestep, *WINDOW) & ~every(step, 2)),))
    case, steps = build("wan_t2v"), (0, 12, 13)
    exact = [tensors(case.model(**inputs(case, k, 1, STEPS)))[0] for k in steps]
    compiled = synccache.compile(case.model, policy, conditions=case.conditions)
    case.model.enable_cache(
        PyramidAttentionBroadcastConfig(
            cross_attention_block_skip_range=2,
            cross_attention_block_identifiers=("^blocks",),
            current_timestep_callback=lambda: 500.0,
        )
    )
    theirs, ours = [], []
    for k in steps:
        for branch, name in enumerate(BRANCHES):
            kwargs = inputs(case, k, branch, STEPS)
            with case.model.cache_context(name):
                theirs.append(tensors(case.model(**kwargs))[0])
    case.model.disable_cache()
    for k in steps:
        for branch, name in enumerate(BRANCHES):
            with compiled.cache_context(name):
                ours.append(tensors(compiled(**inputs(case, k, branch, STEPS)))[0])

    assert not torch.equal(exact[0], theirs[1])  # the very first step of the other branch is wrong
    assert torch.equal(exact[0], ours[1])
    assert torch.equal(exact[2], ours[5])


# ---- FasterCache


def faster_config(now: list[float], only: str, **options: Any) -> FasterCacheConfig:
    return FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_block_identifiers=(only,),
        unconditional_batch_skip_range=5,
        unconditional_batch_timestep_skip_range=(-1, 641),
        current_timestep_callback=lambda: now[-1],
        attention_weight_callback=lambda _: 0.5,
        tensor_format="BCFHW",
        **options,
    )


def test_fastercache_decides_and_computes_as_in_diffusers() -> None:
    """Theirs takes both guidance branches as one batch, unconditional first, and halves it to skip.

    It hooks the self-attentions; our default extrapolates every attention.
    """
    case, now, expected = build("wan_t2v"), [], []
    case.model.enable_cache(faster_config(now, "^blocks"))
    with letters(case.model.blocks[1].attn1.to_q) as watched:
        call = watched(case.model)
        for k in range(STEPS):
            cond, uncond = (inputs(case, k, branch, STEPS) for branch in range(2))
            now.append(float(cond["timestep"]))
            both = {key: torch.cat([uncond[key], cond[key]]) for key in cond}
            with torch.no_grad(), case.model.cache_context("both"):
                out = tensors(call(**both))[0]
            expected += [(out[1:],), (out[:1],)]
    attention, guidance = policies.fastercache().rules
    own = modules(branches.attention - branches.reading(TEXT))
    policy = Policy("fastercache", (replace(attention, skip=own), guidance))
    ours = run_ours(build("wan_t2v"), policy)

    assert call.letters == ours.decisions["cond"]
    assert set(call.letters) == set(ours.decisions["uncond"]) == {"C", "S"}
    assert difference(expected, ours.outputs) <= ROUNDING


@pytest.mark.parametrize(("name", "doubles"), [("hunyuan_video", 3), ("flux", 2)])
def test_fastercache_of_guidance_distilled_models_computes_as_in_diffusers(
    name: str, doubles: int
) -> None:
    """One branch: only the attention of the double-stream blocks is extrapolated."""
    case, unit, now = build(name), 1000.0 if name == "flux" else 1.0, []
    case.model.enable_cache(faster_config(now, "^transformer_blocks", is_guidance_distilled=True))
    with letters(case.model.get_submodule(f"{INNER[name]}.to_q")) as watched:

        def timed(**kwargs: Any) -> Any:
            now.append(float(kwargs["timestep"][0]) * unit)
            return case.model(**kwargs)

        call = watched(timed)
        found = loop(case, call, lambda n, _: case.model.cache_context(n), branches=BRANCHES[:1])
    when = between(timestep, -1.0, 681 / unit) & ~every(step, 2)
    rule = Rule(modules(branches.attention & blocks[:doubles]), when, Fixed((-0.5, 1.5)))
    ours = run_ours(build(name), Policy("fastercache", (rule,)), branches=BRANCHES[:1])

    assert call.letters == ours.decisions["cond"]
    assert set(call.letters) == {"C", "S"}
    assert difference(found, ours.outputs) <= ROUNDING
