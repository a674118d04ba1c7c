"""What is compiled: a function with its modules, as pipelines run one; modules that stay closed."""

import pickle
from typing import Any

import pytest
import torch
from diffsynth_s2v import model_fn_wan_video
from small_models import TOKENS, Talking, denoise, normal, talking, voices
from table_models import build
from test_fx_hazards import model, same, x_of
from torch import Tensor, nn

import synccache
from synccache import policies
from synccache.errors import CaptureError, PolicyError
from synccache.policies.dsl import AUDIO


def run(
    latents: Tensor, timestep: Tensor, audio: Tensor, dit: Talking, gain: float = 1.0
) -> Tensor:
    """A pipeline's model function, which is given its model."""
    return dit(latents * gain, timestep, audio) / gain


def test_a_function_is_compiled_with_the_modules_that_it_runs() -> None:
    dit = talking()
    compiled = synccache.compile(run, "exact", modules=[dit])
    expected = denoise(lambda *a: run(*a, dit=dit, gain=2.0))

    assert torch.equal(expected, denoise(lambda *a: compiled(*a, dit=dit, gain=2.0)))
    assert compiled.captures == 1
    assert "Talking.blocks.0" in compiled.code
    assert compiled.Talking is dit


def test_a_policy_works_on_a_function() -> None:
    dit = talking()
    policy = policies.first_block_cache(threshold=1e9)
    direct, through = (
        synccache.compile(dit, policy),
        synccache.compile(run, policy, modules={"dit": dit}),
    )

    assert torch.equal(denoise(direct), denoise(lambda *a: through(*a, dit=dit)))
    assert through.stats().decisions == direct.stats().decisions
    assert "run" in repr(through)


def test_a_functions_modules_stay_live() -> None:
    dit = talking()
    compiled = synccache.compile(run, "exact", modules=[dit])
    for k, timestep in enumerate((1000.0, 900.0, 800.0)):
        arguments = normal(k, 1, TOKENS, 4), torch.tensor([timestep]), voices()[0], dit
        assert torch.equal(run(*arguments), compiled(*arguments))
        with torch.no_grad():
            dit.injectors[k].pair.weight.mul_(1.5)


def test_a_compiled_function_can_be_pickled() -> None:
    dit = talking()
    twin = pickle.loads(pickle.dumps(synccache.compile(run, "exact", modules=[dit])))
    arguments = normal(0, 1, TOKENS, 4), torch.tensor([900.0]), voices()[0]

    assert torch.equal(run(*arguments, dit=dit), twin(*arguments, dit=twin.Talking))
    assert twin.Talking is not dit


def wan_calls(seed: int, timestep: float, branch: int) -> dict[str, Any]:
    kwargs = build("wan_s2v").inputs(seed, timestep, branch)[1]
    kwargs["audio_embeds"] = kwargs.pop("audio_input")
    kwargs["s2v_pose_latents"] = kwargs.pop("pose_cond")
    return kwargs


@torch.no_grad()
def test_the_model_function_of_a_released_pipeline() -> None:
    function, dit = model_fn_wan_video(), build("wan_s2v").model
    compiled = synccache.compile(function, "exact", modules={"dit": dit})
    for call in ((0, 900.0, 0), (0, 900.0, 1), (1, 800.0, 0), (1, 800.0, 1)):
        kwargs = wan_calls(*call)
        assert torch.equal(function(dit=dit, **kwargs), compiled(dit=dit, **kwargs))
    assert compiled.captures == 1

    audio = [b for b in compiled.program.branches if AUDIO in b.reads]
    assert [b.label.split(".")[:2] for b in audio] == 3 * [["dit", "audio_injector"]]


@pytest.mark.parametrize(
    ("subject", "modules", "message"),
    [
        (run, None, "a function together with the modules"),
        (run, [], "a function together with the modules"),
        (run, ["dit"], "a function together with the modules"),
        (talking(1), [talking(1)], "has its own"),
        ("model", None, "takes a torch.nn.Module, got str"),
    ],
)
def test_what_is_no_model_is_refused(subject: Any, modules: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        synccache.compile(subject, "exact", modules=modules)


# ------------------------------------------------------------------- leaves


def test_a_module_on_the_list_is_called_whole_on_every_call() -> None:
    dit, calls = talking(), []
    dit.listen.register_forward_hook(lambda *_: calls.append("hooked"))
    plain = synccache.compile(talking(), "exact")
    closed = synccache.compile(dit, "exact", leaves=["injectors.*"])
    expected = denoise(dit)

    assert torch.equal(expected, denoise(closed))
    assert torch.equal(expected, denoise(plain))
    targets = [n.target for n in closed.variant.captured.graph.nodes if n.op == "call_module"]
    assert [t for t in targets if "injectors" in t] == [f"model.injectors.{k}" for k in range(4)]
    assert "invariant_audio" in plain.code
    assert "invariant_audio" not in closed.code
    calls.clear()
    denoise(closed)
    assert len(calls) == 12  # a hook may do anything: it runs on every call


def test_state_inside_a_closed_module_is_its_own_affair() -> None:
    class Counting(nn.Module):
        calls, scale = 0, 2.0

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return x * self.scale

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(self.counting(self.a(x)))

    small: Any = model(forward)
    small.counting = Counting()
    with pytest.raises(CaptureError, match=r"every forward changes `counting.calls`"):
        synccache.compile(small, "exact")(x_of(0))
    compiled = synccache.compile(small, "exact", leaves=["counting"])
    for seed in range(12):
        small.counting.scale = 2.0 + seed
        assert same(small(x_of(seed)), compiled(x_of(seed)))
    assert compiled.captures == 1


def test_a_leaf_that_names_no_module_is_refused_with_what_is_near() -> None:
    with pytest.raises(
        CaptureError, match=r"no module is called 'block.1'. Near to it: .*blocks.1"
    ):
        synccache.compile(talking(), "exact", leaves=["block.1"])
