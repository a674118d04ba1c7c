"""A model that is changed after it was compiled: it goes on with the changed model's own bits.

The libraries are the real ones: peft, accelerate, torchao, diffusers. Every change is made to the
model itself; the reference is a second, equal model with the same change.
"""

import copy
import pickle
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from table_models import TableCase, build
from test_fx_hazards import WIDTH, model, x_of
from torch import Tensor, nn

import synccache
from synccache.errors import CaptureError
from synccache.fx.inputs import flatten
from synccache.policies.dsl import Hold, Policy, Rule, Steps, blocks


def case_and_compiled() -> tuple[TableCase, Any]:
    case = build("wan_t2v")
    return case, synccache.compile(case.model, "exact", conditions=case.conditions)


@cache
def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """One object for one tensor and dtype, as a loop passes it."""
    return tensor.to(dtype)


def results(
    call: Callable[..., Any], case: TableCase, *calls: tuple[int, float, int]
) -> list[Tensor]:
    found: list[Tensor] = []
    for k, timestep, branch in calls:
        args, kwargs = case.inputs(k, timestep, branch)
        for name in ("hidden_states", "encoder_hidden_states"):
            kwargs[name] = cast(kwargs[name], case.model.dtype)
        with torch.no_grad():
            found += [t.clone() for t in flatten(call(*args, **kwargs))[0]]
    return found


STEPS = [(0, 900.0, 0), (0, 900.0, 1), (1, 800.0, 0), (1, 800.0, 1)]
LATER = [(2, 700.0, 0), (2, 700.0, 1), (3, 600.0, 0), (3, 600.0, 1)]


def agree(compiled: Any, case: TableCase, calls: list[tuple[int, float, int]]) -> bool:
    expected, found = results(case.model, case, *calls), results(compiled, case, *calls)
    return all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def lora_config(rank: int = 2) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=rank, lora_alpha=4, init_lora_weights=False, target_modules=["to_k", "to_v", "to_q"]
    )


def test_an_adapter_loaded_scaled_switched_off_and_unloaded_in_the_middle_of_a_run() -> None:
    case, compiled = case_and_compiled()
    model: Any = case.model
    plain = results(compiled, case, *LATER)
    assert agree(compiled, case, STEPS)

    torch.manual_seed(1)
    model.add_adapter(lora_config(), "style")
    changed = results(compiled, case, *LATER)
    assert agree(compiled, case, LATER)
    assert not torch.equal(plain[0], changed[0])

    model.set_adapters("style", weights=0.3)
    assert agree(compiled, case, LATER)
    assert not torch.equal(changed[0], results(compiled, case, *LATER)[0])

    model.disable_adapters()
    assert agree(compiled, case, LATER)
    model.enable_adapters()
    assert agree(compiled, case, LATER)
    model.unload_lora()
    assert agree(compiled, case, LATER)
    assert torch.equal(plain[0], results(compiled, case, *LATER)[0])
    assert compiled.captures <= 6


def test_fused_adapters() -> None:
    case, compiled = case_and_compiled()
    model: Any = case.model
    torch.manual_seed(1)
    model.add_adapter(lora_config(), "style")
    assert agree(compiled, case, STEPS)
    model.fuse_lora()
    assert agree(compiled, case, LATER)
    model.unfuse_lora()
    assert agree(compiled, case, LATER)


def test_a_dtype_move() -> None:
    case, compiled = case_and_compiled()
    assert agree(compiled, case, STEPS)
    compiled.to(torch.bfloat16)
    assert case.model.dtype == compiled.dtype == torch.bfloat16
    assert agree(compiled, case, LATER)
    compiled.to(torch.float32)
    assert agree(compiled, case, STEPS)


def test_a_device_move_is_another_recording() -> None:
    case, compiled = case_and_compiled()
    assert agree(compiled, case, STEPS)
    before = compiled._state.structure
    compiled.to("meta")
    compiled._state.look()
    assert compiled._state.structure != before
    assert compiled.device == torch.device("meta")


def test_linears_quantised_by_torchao() -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    case, compiled = case_and_compiled()
    assert agree(compiled, case, STEPS)
    quantize_(case.model, Int8WeightOnlyConfig())
    assert agree(compiled, case, LATER)
    assert agree(compiled, case, STEPS)


def test_offloaded_by_accelerate() -> None:
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_module

    case, compiled = case_and_compiled()
    assert agree(compiled, case, STEPS)
    cpu_offload(case.model, execution_device=torch.device("cpu"))
    assert agree(compiled, case, LATER)
    assert agree(compiled, case, STEPS)
    remove_hook_from_module(case.model, recurse=True)
    assert agree(compiled, case, LATER)


@torch.no_grad()
def test_offloaded_weights_of_the_model_itself_changed_in_the_middle_of_a_run() -> None:
    from accelerate import cpu_offload

    small: Any = model(lambda self, x, text: self.a(x) + self.b(self.table * 2) + self.c(text))
    small.table, text = nn.Parameter(torch.ones(WIDTH)), x_of(9)
    cpu_offload(small, execution_device=torch.device("cpu"))
    compiled = synccache.compile(small, "exact")
    for seed in range(3):
        assert torch.equal(small(x_of(seed), text), compiled(x_of(seed), text))
        for hooked, name in ((small, "table"), (small.c, "weight")):
            parts = getattr(hooked._hf_hook, "hooks", (hooked._hf_hook,))
            held = next(h.weights_map for h in parts if getattr(h, "weights_map", None) is not None)
            held[name].mul_(1.5)


def test_repeated_blocks_compiled_by_diffusers() -> None:
    case, compiled = case_and_compiled()
    assert agree(compiled, case, STEPS)
    case.model.compile_repeated_blocks(backend="eager")
    assert agree(compiled, case, LATER)
    called = [n.target for n in compiled.variant.captured.graph.nodes if n.op == "call_module"]
    assert [f"model.blocks.{k}" for k in range(4)] == [t for t in called if "blocks" in t]


def test_weights_cast_layer_by_layer() -> None:
    case, compiled = case_and_compiled()
    assert agree(compiled, case, STEPS)
    case.model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    assert agree(compiled, case, LATER)


def test_group_offloading() -> None:
    case, compiled = case_and_compiled()
    assert agree(compiled, case, STEPS)
    case.model.enable_group_offload(
        onload_device=torch.device("cpu"), offload_device=torch.device("cpu"),
        offload_type="leaf_level",
    )  # fmt: skip
    assert agree(compiled, case, LATER)


def test_diffusers_own_caching_is_refused_with_the_way_out() -> None:
    from diffusers import FirstBlockCacheConfig

    case, compiled = case_and_compiled()
    case.model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(CaptureError, match=r"two caches would .*disable_cache\(\) first"):
        results(compiled, case, *STEPS)
    case.model.disable_cache()
    assert agree(compiled, case, STEPS)


class Linear8(nn.Module):
    """As bitsandbytes replaces a linear layer: int8 weights, and code that torch does not see."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("codes", (linear.weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.from_numpy(self.codes.numpy().astype("float32"))
        return nn.functional.linear(x, weight * self.scale, self.bias)


def test_linears_replaced_by_a_library_of_kernels() -> None:
    case, compiled = case_and_compiled()
    assert agree(compiled, case, STEPS)
    for block in case.model.blocks[:2]:
        block.attn2.to_k, block.attn2.to_v = Linear8(block.attn2.to_k), Linear8(block.attn2.to_v)
    assert agree(compiled, case, LATER)
    assert set(compiled.variant.captured.closed) == {
        f"blocks.{k}.attn2.to_{p}" for k in (0, 1) for p in "kv"
    }


def test_a_copy_made_in_the_middle_of_a_run_begins_its_own() -> None:
    case = build("wan_t2v")
    policy = Policy("mask", (Rule(blocks[1:], Steps("CSCS"), Hold()),))
    compiled = synccache.compile(case.model, policy)
    whole = results(compiled, case, *STEPS, *LATER)
    compiled.reset()
    results(compiled, case, *STEPS)
    for twin in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        assert all(map(torch.equal, whole, results(twin, case, *STEPS, *LATER)))
        assert twin.stats().decisions == {0: "CSCS", 1: "CSCS"}
