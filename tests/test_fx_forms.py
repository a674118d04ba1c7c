"""What is held of a run, and what a skipped step then computes: values, modules, the whole network."""

from typing import Any

import pytest
import torch
from generated_blocks import Audio, Spec
from generated_models import Generated, build, specs
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from loops import difference, outputs, same, tensors, timesteps
from table_models import build as build_released
from torch import Tensor, nn

import synccache
from synccache import policies
from synccache.errors import MatchError
from synccache.policies.dsl import (
    GRID_DCT,
    Fixed,
    Foca,
    Hold,
    Linear,
    Modules,
    Network,
    Policy,
    Predictor,
    Rule,
    Segments,
    Selector,
    Split,
    Taylor,
    Values,
    blocks,
    branches,
    modules,
    network,
    skips,
    step,
    values,
)

Skip = Selector | Segments | Values | Modules | Network
ROUNDING = 2e-5
SAME_INPUTS = 1e-5

SKIPS: list[Skip] = [
    values(blocks[1:]),
    values(blocks[:1]),
    modules(branches),
    modules(branches.attention),
    modules(branches.mlp, before_gate=False),
    values(network),
]


def few(count: int) -> settings:
    return settings(
        max_examples=count, deadline=None, print_blob=True, report_multiple_bugs=False,
        phases=(Phase.explicit, Phase.reuse, Phase.generate),
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip


def masked(letters: str, skip: Skip, reuse: Predictor = Hold()) -> Policy:  # noqa: B008 - frozen
    return policies.step_mask(letters, skip=skip, reuse=reuse)


def run(compiled: Any, case: Generated, count: int, seeds: Any = None) -> list[tuple[Tensor, ...]]:
    found = []
    for k, timestep in enumerate(timesteps(count)):
        args, kwargs = case.new_inputs(k if seeds is None else seeds[k], timestep)
        with torch.no_grad():
            found.append(tensors(compiled(*args, **kwargs)))
    return found


# ---------------------------------------------------------------- what must not change anything


@few(8)
@given(spec=specs(), skip=st.sampled_from(SKIPS))
def test_forms_that_are_never_skipped_leave_the_output_as_it_is(spec: Spec, skip: Skip) -> None:
    case = build(spec)
    compiled = synccache.compile(case.model, Policy("never", (Rule(skip, step < 0),)))

    assert same(outputs(case.model, case, 2), outputs(compiled, case, 2))


@few(8)
@given(spec=specs(half=False), skip=st.sampled_from(SKIPS))
def test_a_skip_with_what_the_same_inputs_made_equals_the_full_step(spec: Spec, skip: Skip) -> None:
    case = build(spec)
    compiled = synccache.compile(case.model, masked("CS", skip))
    barely = float(torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)))  # the next step's time
    found = []
    for timestep in (1.0, barely):
        args, kwargs = case.new_inputs(0, timestep)
        found.append(tensors(compiled(*args, **kwargs)))

    assert compiled.stats().decisions == {0: "CS"}
    assert difference(found[:1], found[1:]) <= SAME_INPUTS


@pytest.mark.parametrize("name", ["sd3", "qwen_image", "cogvideox", "ltx2", "flux"])
def test_modules_of_released_models_are_held_before_their_gate(name: str) -> None:
    case = build_released(name)
    compiled = synccache.compile(
        case.model, masked("CS", modules(branches)), conditions=case.conditions
    )
    barely = float(torch.nextafter(torch.tensor(900.0), torch.tensor(0.0)))
    args, kwargs = case.inputs(seed=0, timestep=900.0, branch=0, size=0)
    with torch.no_grad():
        assert same([tensors(case.model(*args, **kwargs))], [tensors(compiled(*args, **kwargs))])
        args, kwargs = case.inputs(seed=0, timestep=barely, branch=0, size=0)
        full, skipped = tensors(case.model(*args, **kwargs)), tensors(compiled(*args, **kwargs))

    assert difference([full], [skipped]) <= SAME_INPUTS
    moving = [b for b in compiled.program.branches if b.flops]
    assert len(moving) == sum(len(r.runs) for r in compiled.variant.layout.regions)


# --------------------------------------------------------------------------- what a skip computes


@pytest.mark.parametrize("reuse", [Hold(), Linear(), Taylor(order=2)], ids=repr)
def test_a_skipped_module_is_gated_afresh(reuse: Predictor) -> None:
    case = build(Spec(audio=Audio.NONE, blocks=2))
    letters = "CCCSS"
    compiled = synccache.compile(case.model, masked(letters, modules(branches), reuse))

    expected, held = [], {}
    for k, (letter, timestep) in enumerate(zip(letters, timesteps(len(letters)))):
        (latents, t, audio, text), _ = case.new_inputs(k, timestep)
        x, time, text, _ = case.model.prepare(latents, t, audio, text, None, None)
        for b, block in enumerate(case.model.blocks):
            bodies = {"self": block.attend, "text": lambda h: block.text(h, text), "mlp": block.mlp}  # noqa: B023
            for name, body in bodies.items():
                around, past = block.around[name], held.setdefault((b, name), [])
                if letter == "C":
                    past.append((k, body(around.enter(x, time))))
                    made = past[-1][1]
                else:
                    del past[: -reuse.history]
                    weights = reuse.weights(tuple(s for s, _ in past), k)
                    made = sum(w * f for w, (_, f) in zip(weights, past))
                x = x + around.leave(made, time)
        expected.append((case.model.finish(latents, (x,), audio),))

    assert difference(expected, run(compiled, case, len(letters))) <= ROUNDING
    assert compiled.stats().decisions == {0: letters}


def test_forecasts_are_held_where_the_predictor_looks_at_them() -> None:
    case = build(Spec(audio=Audio.NONE, gated=False))
    letters = "CCSSSCSS"
    for reuse in (Foca(), Fixed((-0.5, 1.5))):
        full = run(case.model, case, len(letters))
        compiled = synccache.compile(case.model, masked(letters, values(network), reuse))
        found = run(compiled, case, len(letters))

        past: list[tuple[int, Tensor, bool]] = []
        for k, (letter, (true,)) in enumerate(zip(letters, full)):
            steps = tuple(s for s, _, _ in past)
            if letter == "C":
                value = true
            elif isinstance(reuse, Foca):
                guessed = frozenset(s for s, _, forecast in past if forecast)
                weights = reuse.weights(steps, k, guessed)
                value = sum(w * v for w, (_, v, _) in zip(weights, past))
            else:
                value = past[-1][1] if len(past) < 2 else 1.5 * past[-1][1] - 0.5 * past[-2][1]
            past.append((k, value, letter == "S"))
            assert difference([(value,)], [found[k]]) <= ROUNDING
            computed = [p for p in past if not p[2]][-2:] if isinstance(reuse, Foca) else []
            past = [
                p for i, p in enumerate(past) if i >= len(past) - 2 or any(p is c for c in computed)
            ]


def test_a_value_is_put_in_place_whatever_comes_in() -> None:
    case = build(Spec(audio=Audio.NONE))
    compiled = synccache.compile(case.model, masked("CS", values(blocks[:2])))
    other = synccache.compile(case.model, masked("CS", values(blocks[:2])))

    near, far = run(compiled, case, 2, seeds=(0, 1)), run(other, case, 2, seeds=(0, 40))

    assert same(near, far)


def test_what_only_a_replaced_run_needed_is_not_computed() -> None:
    case = build(Spec(audio=Audio.NONE))
    compiled = synccache.compile(case.model, masked("CS", values(blocks[:])))
    run(compiled, case, 2)
    top = {str(n.target) for n in compiled.graph_module.graph.nodes if n.op == "call_module"}

    assert "model.embed" not in top
    assert "model.head" in top


def test_the_network_as_a_residual_adds_to_the_present_sample() -> None:
    case = build(Spec(audio=Audio.OWN))
    compiled = synccache.compile(case.model, masked("CS", network))
    first, second = (case.new_inputs(k, t) for k, t in enumerate(timesteps(2)))
    with torch.no_grad():
        full = compiled(*first[0], **first[1])
        skipped = compiled(*second[0], **second[1])

    assert torch.equal(second[0][0] + (full - first[0][0]), skipped)


def test_the_network_as_a_value_is_the_last_output_and_a_caller_may_write_to_it() -> None:
    case = build(Spec(audio=Audio.OWN))
    compiled = synccache.compile(case.model, masked("CSS", values(network)))
    found = []
    for k, timestep in enumerate(timesteps(3)):
        args, kwargs = case.new_inputs(k, timestep)
        with torch.no_grad():
            out = compiled(*args, **kwargs)
            found.append(out.clone())
            out.zero_()

    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_streams_written_in_place_do_not_spoil_held_values() -> None:
    for skip in (values(blocks[:1]), modules(branches), values(blocks[1:])):
        plain, in_place = (build(Spec(in_place=p, audio=Audio.OWN)) for p in (False, True))
        found = [
            run(synccache.compile(case.model, masked("CSSCSS", skip)), case, 6)
            for case in (plain, in_place)
        ]
        assert same(*found)


def test_joint_attention_holds_the_outputs_of_both_streams_and_runs_once() -> None:
    case = build(Spec(audio=Audio.NONE, joint_text=True, blocks=2))
    compiled = synccache.compile(case.model, masked("CS", modules(branches.attention)))
    run(compiled, case, 1)

    assert [len(r.runs) for r in compiled.variant.layout.regions] == [2, 1]


# ------------------------------------------------------------------------------------ refusals


def test_a_network_whose_output_is_shaped_otherwise_is_refused() -> None:
    case = build(Spec(audio=Audio.STREAM, both_outputs=True))
    compiled = synccache.compile(case.model, masked("CS", network))

    with pytest.raises(MatchError, match=r"the sample \[.*\] has another shape than the output"):
        run(compiled, case, 1)


def test_modules_that_only_add_inputs_are_refused() -> None:
    case = build(Spec(audio=Audio.ADDS, audio_blocks=frozenset({1})))
    compiled = synccache.compile(case.model, masked("CS", modules(branches.adds)))

    with pytest.raises(MatchError, match="there is nothing to skip in them"):
        run(compiled, case, 1)


def test_drift_is_measured_on_residuals_only() -> None:
    case = build(Spec(audio=Audio.OWN))
    policy = masked("CS", values(blocks[1:]))

    with pytest.raises(MatchError, match="drift is measured on residuals"):
        synccache.calibrate(case.model, lambda model: run(model, case, 2), policy=policy)


def test_tokens_that_are_no_square_grid_are_refused_before_anything_runs() -> None:
    case = build(Spec(audio=Audio.NONE, tokens_per_frame=5))
    reuse = Split(transform=GRID_DCT)
    compiled = synccache.compile(case.model, masked("CS", values(blocks[1:]), reuse))

    with pytest.raises(MatchError, match=r"10 tokens of .* are no square grid"):
        run(compiled, case, 1)


class Bare(nn.Module):
    """A model whose output is its stream."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, latents: Tensor, timestep: Tensor) -> Tensor:
        for block in self.blocks:
            latents = latents + block(latents) * timestep
        return latents


def test_a_caller_may_write_to_a_stream_that_is_the_output() -> None:
    compiled = synccache.compile(Bare().eval(), masked("CSS", values(blocks[:])))
    found = []
    for k in range(3):
        with torch.no_grad():
            out = compiled(torch.full((1, 5, 4), float(k)), torch.tensor([0.9 - 0.1 * k]))
            found.append(out.clone())
            out.zero_()

    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


class Writing(nn.Module):
    """A model that scales the latents it is given in place."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor, timestep: Tensor, audio: Tensor, text: Tensor) -> Tensor:
        latents.mul_(0.5)
        return self.model(latents, timestep, audio, text)


@pytest.mark.parametrize("skip", [values(network), network, values(blocks[:1])])
def test_a_skip_that_would_leave_out_a_write_to_an_input_is_refused(skip: Skip) -> None:
    model = Writing(build(Spec(audio=Audio.NONE)).model).eval()
    args, _ = build(Spec(audio=Audio.NONE)).new_inputs(0, 900.0)
    compiled = synccache.compile(model, masked("CS", skip))

    with pytest.raises(MatchError, match="would leave out a write to the input latents"):
        compiled(*args)


def test_a_write_to_an_input_outside_what_is_skipped_happens_on_every_step() -> None:
    model = Writing(build(Spec(audio=Audio.NONE)).model).eval()
    compiled = synccache.compile(model, masked("CS", blocks[1:]))
    for k, timestep in enumerate(timesteps(2)):
        (latents, *others), _ = build(Spec(audio=Audio.NONE)).new_inputs(k, timestep)
        before = latents.clone()
        with torch.no_grad():
            compiled(latents, *others)
        assert torch.equal(before * 0.5, latents)

    assert compiled.stats().decisions == {0: "CS"}


@few(5)
@given(
    spec=specs(),
    skip=st.sampled_from(SKIPS),
    reuse=st.sampled_from([Hold(), Taylor(2), Foca(), Fixed((-0.5, 1.5)), Split()]),
)
def test_interleaved_runs_equal_separate_ones_and_hold_what_was_planned(
    spec: Spec, skip: Skip, reuse: Predictor
) -> None:
    case = build(spec)
    rule = Rule(skip, (step >= 2) & (skips < 2), reuse)
    compiled = synccache.compile(case.model, Policy("mine", (rule,)))
    separate = [outputs(compiled, case, 5, branches=1, seed=seed) for seed in (0, 50)]
    assert compiled.stats().bytes_held <= compiled.plan.memory.cache_bytes
    together: list[list[tuple[Tensor, ...]]] = [[], []]
    for k, timestep in enumerate(timesteps(5)):
        for key, seed in enumerate((0, 50)):
            args, kwargs = case.new_inputs(seed + k, timestep)
            with compiled.trajectory(key), torch.no_grad():
                together[key].append(tensors(compiled(*args, **kwargs)))

    assert all(map(same, separate, together))
