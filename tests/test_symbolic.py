"""Bytes, FLOPs, seconds and the activation peak at sizes that were never recorded, against recordings."""

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import pytest
import torch
from diffsynth_s2v import wan_s2v_module
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import talking
from torch import Tensor, nn

import synccache
from synccache import Plan, PlanError
from synccache.compiler import checked_request, prepare
from synccache.fx.fake import fake_capture
from synccache.planner import ChainProblem
from synccache.planner.devices import DEVICES
from synccache.planner.polynomials import Basis, NotPolynomial
from synccache.planner.sizes import Axis

TEXT = 16
BATCH = Axis(name="batch", step=1, first=1)
FRAMES = Axis(name="frames", step=1, first=1)
HEIGHT = Axis(name="height", step=2, first=2)
WIDTH = Axis(name="width", step=2, first=2)
TALL = Axis(name="height", step=2, first=8)  # what the widest patches of the motion frames need
WIDE = Axis(name="width", step=2, first=8)
SOUND = Axis(name="sound", step=1, first=1)


def meta(*size: int) -> Tensor:
    return torch.empty(*size, device="meta")


def wan() -> nn.Module:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=TEXT,
        freq_dim=32, ffn_dim=48, num_layers=2, rope_max_seq_len=64,
    )  # fmt: skip


def wan_inputs(batch: int, frames: int, height: int) -> dict[str, Any]:
    return {
        "hidden_states": meta(batch, 4, frames, height, 20),
        "timestep": torch.full((batch,), 900.0),
        "encoder_hidden_states": meta(batch, 5, TEXT),
    }


def hunyuan() -> nn.Module:
    return diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        num_single_layers=1, num_refiner_layers=1, patch_size=2, text_embed_dim=TEXT,
        pooled_projection_dim=12, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip


def hunyuan_inputs(frames: int, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": meta(1, 4, frames, height, width),
        "timestep": torch.tensor([900.0]),
        "encoder_hidden_states": meta(1, 6, TEXT),
        "encoder_attention_mask": torch.ones(1, 6, dtype=torch.int64),
        "pooled_projections": meta(1, 12),
        "guidance": torch.tensor([6000.0]),
    }


def ltx2() -> nn.Module:
    return diffusers.LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12,
        cross_attention_dim=24, audio_in_channels=4, audio_out_channels=4,
        audio_num_attention_heads=2, audio_attention_head_dim=8, audio_cross_attention_dim=16,
        num_layers=2, caption_channels=TEXT,
    )  # fmt: skip


def ltx2_inputs(frames: int, height: int, sound: int) -> dict[str, Any]:
    time = torch.tensor([900.0])
    return {
        "hidden_states": meta(1, frames * height * 3, 4),
        "audio_hidden_states": meta(1, sound, 4),
        "encoder_hidden_states": meta(1, 5, TEXT),
        "audio_encoder_hidden_states": meta(1, 5, TEXT),
        "timestep": time, "sigma": time,
        "num_frames": frames, "height": height, "width": 3, "audio_num_frames": sound,
    }  # fmt: skip


def wan_s2v() -> nn.Module:
    return wan_s2v_module().WanS2VModel(
        dim=24, in_dim=16, ffn_dim=48, out_dim=16, text_dim=TEXT, freq_dim=16, eps=1e-6,
        patch_size=(1, 2, 2), num_heads=2, num_layers=3, cond_dim=16, audio_dim=12,
        num_audio_token=4, audio_inject_layers=[0, 1],
    )  # fmt: skip


def wan_s2v_inputs(frames: int, height: int, width: int) -> dict[str, Any]:
    return {
        "latents": meta(1, 16, frames + 1, height, width),
        "timestep": torch.tensor([900.0]),
        "context": meta(1, 5, TEXT),
        "audio_input": meta(1, 25, 12, 4 * frames),
        "motion_latents": [meta(16, 19, height, width)],
        "pose_cond": meta(1, 16, frames, height, width),
    }


Case = tuple[
    Callable[[], nn.Module],
    Callable[..., dict[str, Any]],
    tuple[Axis, ...],
    str,
    list[dict[str, int]],
]
CASES: dict[str, Case] = {
    "wan": (wan, wan_inputs, (BATCH, FRAMES, HEIGHT), "first_block_cache",
            [{"batch": 3, "frames": 9, "height": 44}]),
    "hunyuan_video": (hunyuan, hunyuan_inputs, (FRAMES, HEIGHT, WIDTH), "first_block_cache",
                      [{"frames": 11, "height": 18, "width": 34}]),
    "ltx2": (ltx2, ltx2_inputs, (FRAMES, Axis(name="height", step=1, first=1), SOUND),
             "asymmetric", [{"frames": 9, "height": 23, "sound": 77}]),
    "wan_s2v": (wan_s2v, wan_s2v_inputs, (FRAMES, TALL, WIDE), "asymmetric",
                [{"frames": 9, "height": 38, "width": 20}, {"frames": 7, "height": 20, "width": 26}]),
}  # fmt: skip
START = {"batch": 1, "frames": 6, "height": 16, "width": 20, "sound": 40}


@pytest.mark.parametrize("name", CASES)
def test_every_figure_at_another_size_is_what_a_recording_there_finds(name: str) -> None:
    build, inputs, axes, policy, others = CASES[name]
    model = build().to("meta").eval()
    start = {axis.name: START[axis.name] for axis in axes}
    plan = synccache.plan(model, policy=policy, inputs=inputs, axes=axes, sizes=start)
    assert plan.symbolic is not None
    for sizes in others:
        expected = problem_at(model, inputs(**sizes), policy)
        found = plan.symbolic.at(**sizes)

        assert without_seconds(found) == without_seconds(expected)
        assert seconds(found) == pytest.approx(seconds(expected))
        assert found.activation_bytes > plan.memory.activation_bytes


def problem_at(model: nn.Module, kwargs: dict[str, Any], policy: str) -> ChainProblem:
    captured = fake_capture(model, (), kwargs, DEVICES["h100"])
    found = prepare(model, checked_request(policy), captured, 2).problem
    assert found is not None
    return found


def without_seconds(problem: ChainProblem) -> dict[str, object]:
    entries = {name: getattr(problem, name) for name in ChainProblem.__annotations__}
    groups = (*entries.pop("gaps"), *entries.pop("lives"))
    return {**entries, "flops": [g.flops for g in groups], "names": [g.name for g in groups]}


def seconds(problem: ChainProblem) -> list[float]:
    return [group.seconds for group in (*problem.gaps, *problem.lives)]


TOKENS = Axis(name="tokens", step=1, first=1)


def talking_inputs(tokens: int) -> dict[str, Tensor]:
    return {
        "latents": meta(1, tokens, 4),
        "timestep": torch.tensor([900.0]),
        "audio": meta(1, 5, 6),
    }


@pytest.fixture(scope="module")
def plan() -> Plan:
    model = talking().to("meta")
    return synccache.plan(model, inputs=talking_inputs, axes=(TOKENS,), sizes={"tokens": 12})


def test_a_plan_at_another_size_is_the_plan_that_is_made_there(plan: Plan) -> None:
    there = synccache.plan(talking().to("meta"), (), talking_inputs(40), guidance_branches=3)
    found = plan.at(tokens=40, guidance_branches=3)

    assert found.memory == there.memory
    assert found.choices == there.choices
    assert found.fingerprint == there.fingerprint
    assert found.at(tokens=12, guidance_branches=2).memory == plan.memory


def test_expressions_are_in_the_names_of_the_sizes(plan: Plan) -> None:
    assert plan.symbolic is not None
    (tokens,) = plan.symbolic.held_bytes(0).free_symbols

    assert plan.symbolic.held_bytes(0) == 64 * tokens  # 16 channels in float32
    assert str(tokens) == "tokens"
    assert plan.symbolic.flops.coeff(tokens, 2) == 3 * 4 * 16  # self-attention of three blocks
    bytes_there = plan.symbolic.activation_bytes.subs(tokens, 40)
    assert bytes_there == plan.at(tokens=40).memory.activation_bytes


def test_the_budget_of_a_plan_holds_at_other_sizes_too(plan: Plan) -> None:
    limited = synccache.plan(
        talking().to("meta"), mem_budget=plan.memory.total_bytes, inputs=talking_inputs,
        axes=(TOKENS,), sizes={"tokens": 12},
    )  # fmt: skip

    with pytest.raises(PlanError, match="below the"):
        limited.at(tokens=200)


def test_what_a_plan_is_not_asked_for_is_refused(plan: Plan) -> None:
    with pytest.raises(PlanError, match="no size is called height; this model's are tokens"):
        plan.at(height=3)
    with pytest.raises(PlanError, match="tokens must be a whole number"):
        plan.at(tokens=0)
    with pytest.raises(PlanError, match="for one size only"):
        Plan.from_json(plan.to_json()).at(tokens=3)
    assert Plan.from_json(plan.to_json()) == plan


class Branching(nn.Module):
    """Takes another course from 14 tokens on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = talking()

    def forward(self, latents: Tensor, timestep: Tensor, audio: Tensor) -> Tensor:
        if latents.shape[1] >= 14:
            latents = latents * 2
        return self.inner(latents, timestep, audio)


def test_a_forward_that_takes_another_course_at_another_size_is_refused() -> None:
    with pytest.raises(PlanError, match="takes another course at"):
        synccache.plan(
            Branching().to("meta"), inputs=talking_inputs, axes=(TOKENS,), sizes={"tokens": 12}
        )


def test_a_quantity_that_is_no_polynomial_is_refused() -> None:
    def squared(tokens: int) -> Mapping[str, Tensor]:
        return talking_inputs(tokens**2)

    with pytest.raises(PlanError, match="is no polynomial of tokens: it is"):
        synccache.plan(talking().to("meta"), inputs=squared, axes=(TOKENS,), sizes={"tokens": 12})


AXES = (FRAMES, HEIGHT)
POINTS = [{"frames": f, "height": h} for f, h in ((2, 4), (2, 6), (3, 4), (3, 6), (7, 12), (5, 8))]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-1000, 1000), min_size=4, max_size=4), st.integers(1, 50))
def test_a_fit_gives_back_the_polynomial_and_refuses_another_degree(
    coefficients: list[int], curvature: int
) -> None:
    basis = Basis(AXES)
    basis.settle(POINTS)
    values = [sum(map(int.__mul__, coefficients, basis.row(point))) for point in POINTS]
    beyond = {"frames": 31, "height": 90}
    expected = sum(map(int.__mul__, coefficients, basis.row(beyond)))

    assert basis.value(basis.fit("a sum", values), beyond) == expected
    with pytest.raises(NotPolynomial):
        basis.fit("a curve", [v + curvature * p["frames"] ** 2 for v, p in zip(values, POINTS)])
