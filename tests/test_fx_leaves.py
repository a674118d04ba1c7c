"""Released classes with their blocks called whole, and LTX-2 with its Python flags.

The opened form of the same classes is in test_fx_program.py.
"""

from typing import Any

import pytest
import torch
from table_models import NAMES, build
from test_fx_program import bits_differ, tensors
from torch import nn

import synccache

LTX2_FLAGS: list[dict[str, Any]] = [
    {},
    {"isolate_modalities": True},
    {"spatio_temporal_guidance_blocks": [1]},
    {"spatio_temporal_guidance_blocks": [0, 2], "isolate_modalities": True},
    {"use_cross_timestep": True, "audio_sigma": torch.tensor([650.0])},
    {"return_dict": False},
    {"spatio_temporal_guidance_blocks": [1], "perturbation_mask": torch.tensor([1.0])},
]


def blocks_of(model: nn.Module) -> list[str]:
    """What to pass as leaves: every item of the model's own lists of modules."""
    return [f"{name}.*" for name, m in model.named_children() if isinstance(m, nn.ModuleList)]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_model_with_its_blocks_called_whole_gives_the_same_bits(name: str) -> None:
    case = build(name)
    leaves = blocks_of(case.model)
    compiled = synccache.compile(case.model, "exact", conditions=case.conditions, leaves=leaves)
    steps = [(k, 900.0 - 100 * k, branch, 0) for k in (0, 1) for branch in (0, 1)]
    larger = [(2, 700.0, 0, 1), (3, 600.0, 1, 1)]

    assert bits_differ(case, compiled, *steps, *larger) == []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert bits_differ(case, compiled, *steps) == []
    called = [n.target for n in compiled.variant.captured.graph.nodes if n.op == "call_module"]
    lists = tuple(f"model.{name[:-1]}" for name in leaves)
    assert sum(t.startswith(lists) for t in called) == sum(
        len(getattr(case.model, name[:-2])) for name in leaves
    )
    assert {t.count(".") for t in called if t.startswith(lists)} == {2}


@pytest.mark.parametrize("closed", [False, True])
@torch.no_grad()
def test_every_flag_of_ltx2_is_a_program_of_its_own(closed: bool) -> None:
    case = build("ltx2")
    model = type(case.model).from_config(case.model.config, perturbed_attn=True)
    model.load_state_dict(case.model.state_dict())
    model.eval().requires_grad_(False)
    compiled = synccache.compile(
        model, "exact", conditions=case.conditions, leaves=blocks_of(model) * closed
    )
    results = []
    for flags in LTX2_FLAGS:
        for seed in (0, 1):
            _, kwargs = case.inputs(seed, 900.0 - 100 * seed)
            expected, found = model(**kwargs | flags), compiled(**kwargs | flags)
            assert type(expected) is type(found)
            assert all(map(torch.equal, tensors(expected), tensors(found)))
        results.append(tensors(found))

    assert compiled.captures == len(LTX2_FLAGS)
    for flags, result in list(zip(LTX2_FLAGS, results, strict=True))[1:5]:
        assert not torch.equal(result[0], results[0][0]), flags
