"""Every method of the library on hypothesis-generated models: compiled as the interpreter does it by hand.

The same decisions, outputs equal to within rounding of the additive steps, and the same tensors held
for the next step, whatever the threshold and the seed.
"""

from typing import Any

import pytest
import torch
from generated_blocks import FRAMES, Audio, Spec
from generated_models import build, specs
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from library_cases import CASES, LONGER, STEPS, TOKENWISE, WITHOUT_RULES
from loops import difference, outputs
from reference_interpreter import Interpreter
from reference_selection import Run

import synccache
from synccache.fx.runs import RunForm
from synccache.fx.taps import main_stream
from synccache.policies import LIBRARY
from synccache.policies.dsl import Policy

ROUNDING = 2e-5  # of float32, through the blocks behind a skipped run
HELD = 1e-4  # of the largest number held: differences of steps that were rounded apart

# What a method asks of the model, beyond what each has.
AUDIBLE = [audio for audio in Audio if audio is not Audio.NONE]


def test_every_method_of_the_library_has_a_case() -> None:
    assert set(LIBRARY) == {*CASES, *WITHOUT_RULES}


def models(name: str) -> st.SearchStrategy[Spec]:
    fixed: dict[str, Any] = {"half": False}
    if name in ("easycache", "fastercache"):  # one latent in, one grid of its shape out
        fixed |= {"both_outputs": False}
    if name in TOKENWISE:  # by hand, draws are numbered by branch
        fixed |= {"joint_text": False, "gated": True, "slice_write": False}
    if name == "dicache":  # its probe is refused where a run has to end at it
        fixed |= {"early_exit": False, "both_outputs": False}
    if name == "pab":  # joint attention is one module: self and cross are not skipped apart
        fixed |= {"joint_text": False}
    many = specs(**fixed).filter(lambda s: s.blocks > 2)
    if name == "dicache":  # a stream that another reads is not written over: its run ends there
        return many.filter(lambda s: not (s.in_place and s.audio is Audio.STREAM))
    if name in TOKENWISE:
        return many.filter(lambda s: s.audio not in (Audio.STREAM, Audio.ADDS))
    return many.filter(lambda s: s.audio in AUDIBLE) if name == "asymmetric" else many


def compared(name: str, spec: Spec, policy: Policy) -> tuple[Interpreter, Any, float]:
    case, steps = build(spec), LONGER.get(name, STEPS)
    tokens = torch.arange(FRAMES * spec.tokens_per_frame)
    masks = {"person": (tokens % spec.tokens_per_frame == 0).float()}
    reference = Interpreter(case.model, policy, masks=masks, steps=steps)
    compiled = synccache.compile(case.model, policy, masks=masks)
    compiled.begin(steps=steps)
    expected, found = outputs(reference, case, steps), outputs(compiled, case, steps)
    return reference, compiled, difference(expected, found)


@pytest.mark.parametrize("name", CASES)
@settings(
    max_examples=2,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
@given(data=st.data())
def test_a_method_decides_computes_and_holds_what_the_interpreter_does(
    name: str, data: st.DataObject
) -> None:
    spec = data.draw(models(name))
    policy = CASES[name](data.draw(st.floats(0.05, 1.9)))
    reference, compiled, distance = compared(name, spec, policy)

    assert list(reference.decisions.values()) == list(compiled.stats().decisions.values())
    assert distance <= ROUNDING
    assert_same_held(reference, compiled)


def assert_same_held(reference: Interpreter, compiled: Any) -> None:
    """What is held of the video stream, tensor by tensor; runs may be cut in other places by hand."""
    program, regions = compiled.program, compiled.variant.layout.regions
    video = [b.index for b in program.of_stream(main_stream(program))]
    (trajectory,) = compiled._trajectories.values()
    for branch, state in enumerate(trajectory.branches.values()):
        by_hand = reference.held(branch)
        found: dict[Any, list[list[torch.Tensor]]] = {}
        for (index, place), held in state.held.items():
            key = _place(regions[index].runs[place], place, video, reference.order)
            found.setdefault(key, []).append(held.tensors())
        for key, pieces in found.items():
            expected = [tensors for place, tensors in by_hand.items() if _key(place) == key]
            if key is not None and expected:
                _assert_alike(_summed(expected), _summed(pieces))


def _place(run: Any, place: int, video: list[int], order: list[int]) -> Any:
    """Under what the run's tensors are compared; None for those of other streams."""
    if run.form is RunForm.NETWORK:
        return f"network {place}"
    if not {b.index for b in run.branches} <= set(video):
        return None
    last = video.index(run.branches[-1].index)
    if run.form is RunForm.MODULE:
        return order[last]
    # residuals add up to the same wherever they are cut
    return ("residuals", run.rule) if run.form is RunForm.RESIDUAL else (run.rule, last + 1)


def _key(place: Any) -> Any:
    if not isinstance(place, Run):
        return place
    if place.stream != "video":
        return "elsewhere"
    return ("residuals", place.rule) if place.residual else (place.rule, place.stop)


def _summed(pieces: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    return [sum(parts[1:], parts[0]) for parts in zip(*pieces, strict=True)]


def _assert_alike(expected: list[torch.Tensor], found: list[torch.Tensor]) -> None:
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        one = one[:, : other.shape[1]]  # what is written to a slice is padded by hand
        assert float((one - other).abs().max()) <= HELD * float(one.abs().max())
