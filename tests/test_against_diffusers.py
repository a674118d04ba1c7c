"""The caches of diffusers as released and as policies: the same decisions and outputs."""

import pytest
from diffusers import FirstBlockCacheConfig
from loops import difference
from peers import run_ours, run_peer
from table_models import build

from synccache import policies

INNER = {
    "wan_t2v": "blocks.1.attn1",
    "hunyuan_video": "transformer_blocks.1.attn",
    "flux": "transformer_blocks.1.attn",
}
ROUNDING = 1e-6

models = pytest.mark.parametrize("name", INNER)


@models
@pytest.mark.parametrize("threshold", [0.3, 0.4])
def test_first_block_cache_decides_and_computes_as_in_diffusers(
    name: str, threshold: float
) -> None:
    theirs = run_peer(build(name), FirstBlockCacheConfig(threshold=threshold), watch=INNER[name])
    ours = run_ours(build(name), policies.first_block_cache(threshold))

    assert theirs.decisions == ours.decisions
    assert set(ours.decisions["cond"]) == {"C", "S"}
    assert difference(theirs.outputs, ours.outputs) <= ROUNDING
