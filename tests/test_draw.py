"""``compiled.draw``: a picture of streams, branches, regions and cuts; and the table that explains them."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from generated_blocks import Audio, Spec
from generated_models import build
from torch import nn

import synccache
from synccache.errors import MatchError
from synccache.fx.draw import AUDIBLE
from synccache.policies.dsl import AUDIO, Policy, Rule, Steps, blocks, branches

LIVE_AUDIO = Policy(
    "every second", (Rule(branches.after(blocks[0]) - branches.reading(AUDIO), Steps("CS")),)
)


def compiled(spec: Spec) -> synccache.CachedModel:
    case = build(spec)
    model = synccache.compile(case.model, LIVE_AUDIO)
    args, kwargs = case.new_inputs(seed=0, timestep=900.0)
    model(*args, **kwargs)
    return model


def words(path: Path) -> list[str]:
    texts = ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
    return [text.text or "" for text in texts]


@torch.no_grad()
def test_a_picture_names_streams_blocks_regions_and_conditions(tmp_path: Path) -> None:
    model = compiled(Spec(blocks=4, audio_blocks=frozenset({0, 1, 3})))
    model.draw(tmp_path / "graph.svg")
    found = words(tmp_path / "graph.svg")

    assert {"Transformer", "S0", "block 0", "block 3", "audio", "text", "timestep"} <= set(found)
    assert [w.split(",")[0] for w in found if w.startswith("region")] == ["region 0", "region 1"]
    assert found.count("live: audio, every step") == 3


@torch.no_grad()
def test_branches_that_read_audio_are_coloured(tmp_path: Path) -> None:
    model = compiled(Spec(audio=Audio.STREAM, both_outputs=True, blocks=3))
    model.draw(tmp_path / "graph.svg")
    boxes = (tmp_path / "graph.svg").read_text().count(f'fill="{AUDIBLE}"')
    alike = 2  # blocks 1 and 2 are drawn once; and one box stands in the legend

    assert boxes == sum("audio" in b.reads for b in model.program.branches if b.block < alike) + 1


@torch.no_grad()
def test_blocks_that_repeat_are_folded_in_picture_and_table(tmp_path: Path) -> None:
    model = compiled(Spec(audio=Audio.OWN, audio_blocks=frozenset(), blocks=5))
    model.draw(tmp_path / "graph.svg")
    table = [line for line in model.explain().splitlines() if "blocks." in line and " ms" in line]

    assert {"block 0", "block 1-4", "4 alike"} <= set(words(tmp_path / "graph.svg"))
    assert [line.split()[0] for line in table if re.match(r"\d", line)] == ["0", "1-4"]
    assert all("%" in line for line in table)


@torch.no_grad()
def test_a_model_without_streams_cannot_be_drawn(tmp_path: Path) -> None:
    model = synccache.compile(nn.Linear(4, 4), "exact")
    model(torch.randn(2, 4))
    with pytest.raises(MatchError, match="nothing to draw"):
        model.draw(tmp_path / "graph.svg")
