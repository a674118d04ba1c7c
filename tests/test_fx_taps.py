"""Probes are found by data flow, on released models: the tensors that the released caches watch."""

from typing import Any

import pytest
from table_models import build

import synccache
from synccache import policies
from synccache.errors import MatchError
from synccache.fx.match import select
from synccache.fx.taps import find_taps, prediction_node
from synccache.policies.dsl import (
    PROJECTION,
    TimeEmbedding,
    blocks,
    entering,
    latent,
    modulated,
    module,
    output,
    time_embedding,
)


def program(name: str) -> Any:
    case = build(name)
    compiled = synccache.compile(
        case.model, policies.exact(), conditions=case.conditions, example=case.inputs(0, 500.0, 0)
    )
    return compiled.program


def readers(node: Any) -> list[str]:
    """The modules that use a value."""
    return [f"{user.target}" for user in node.users if user.op == "call_module"]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("wan_t2v", "blocks.0.attn1.to_q"),
        ("wan_s2v", "blocks.0.self_attn.q"),
        ("hunyuan_video", "transformer_blocks.0.attn.to_q"),
        ("flux", "transformer_blocks.0.attn.to_q"),
        ("cogvideox", "transformer_blocks.0.attn1.to_q"),
        ("qwen_image", "transformer_blocks.0.attn.to_q"),
    ],
)
def test_the_modulated_input_is_what_the_first_projection_reads(name: str, first: str) -> None:
    taps = find_taps(modulated(blocks[0]), frozenset(), program(name), select, name)

    assert readers(taps.after)[0].endswith(first)


@pytest.mark.parametrize(
    ("name", "path", "projection"),
    [
        ("wan_t2v", "condition_embedder.time_embedder", [1, 6, 24]),
        ("wan_s2v", "time_embedding", [1, 6, 2, 24]),
        ("flux", "time_text_embed", [1, 32]),
        ("qwen_image", "time_text_embed.timestep_embedder", [1, 32]),
        ("pixart", "adaln_single.emb.timestep_embedder", [1, 96]),
    ],
)
def test_the_time_embedding_is_what_all_uses_of_the_timestep_share(
    name: str, path: str, projection: list[int]
) -> None:
    found = program(name)
    embedding = find_taps(time_embedding, frozenset(), found, select, name).after
    projected = find_taps(TimeEmbedding(PROJECTION), frozenset(), found, select, name).after

    assert embedding.meta["frame"].path == path
    assert list(projected.meta["shape"]) == projection


@pytest.mark.parametrize("name", ["hunyuan_video", "ltx2"])
def test_a_model_whose_uses_of_the_timestep_share_nothing_is_refused(name: str) -> None:
    with pytest.raises(MatchError, match=r"uses of the timestep have no tensor in common"):
        find_taps(time_embedding, frozenset(), program(name), select, name)


def test_the_stream_before_and_the_sample_and_the_output_are_themselves() -> None:
    found = program("wan_t2v")
    first = next(b for b in found.branches if b.block == 1)

    def tap(probe: Any) -> Any:
        return find_taps(probe, frozenset(), found, select, "").after

    assert tap(entering(blocks[1])) is first.before is tap(output(blocks[0]))
    assert tap(latent).name == "hidden_states"
    assert list(prediction_node(found).meta["shape"]) == list(tap(latent).meta["shape"])
    assert tap(module(blocks[1])).meta["frame"].path == "blocks.1.attn1"
