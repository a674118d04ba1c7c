"""The recorded model stays the live model: its state, its sub-modules, its surroundings."""

import copy
import pickle
from typing import Any

import pytest
import torch
from test_fx_hazards import WIDTH, Model, check, model, same, x_of
from torch import Tensor, nn

import synccache
from synccache.errors import CaptureError, SynccacheError
from synccache.fx.capture import capture

# ------------------------------------------------------------------- state on the model


def test_a_tensor_kept_on_self_and_read_in_the_same_forward() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        self.kept = self.a(x)
        return self.b(self.kept) + self.kept

    check(model(forward))


def test_a_tensor_carried_to_the_next_forward_is_refused() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        previous = getattr(self, "previous", None)
        self.previous = self.a(x)
        return x if previous is None else x + previous

    with pytest.raises(CaptureError, match="made from its inputs, and the next forward reads it"):
        synccache.compile(model(forward), "exact")(x_of(0))


def test_a_tensor_carried_in_a_list_or_outside_the_model_is_refused() -> None:
    bank: list[Tensor] = []

    def forward(self: Model, x: Tensor) -> Tensor:
        bank.append(self.a(x))
        return x + bank[0]

    with pytest.raises(CaptureError, match="the next forward reads it"):
        synccache.compile(model(forward), "exact")(x_of(0))


def test_a_counter_is_refused_by_name() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return self.a(x) if self.calls % 2 else self.b(x)

    with pytest.raises(CaptureError, match="every forward changes `calls`"):
        synccache.compile(model(forward), "exact")(x_of(0))


class Tea:
    """Keeps its count outside the model, as TeaCache's patches do."""

    count = 0


def test_a_counter_outside_the_model_is_refused_by_name() -> None:
    count = [0]

    class Counted(Model):
        total = 0

        def forward(self, x: Tensor) -> Tensor:
            type(self).total += 1
            return self.a(x) * self.total

    def in_a_closure(self: Model, x: Tensor) -> Tensor:
        count[0] += 1
        return self.a(x) if count[0] % 2 else self.b(x)

    def in_a_global(self: Model, x: Tensor) -> Tensor:
        Tea_state.count += 1
        return self.a(x) if Tea_state.count < 9 else self.b(x)

    for small, name in (
        (Counted(), r"Counted.total"),
        (model(in_a_closure), r"count of .*in_a_closure"),
        (model(in_a_global), "Tea_state of test_fx_capture"),
    ):
        with pytest.raises(CaptureError, match=f"every forward changes `.*{name}`"):
            synccache.compile(small, "exact")(x_of(0))


Tea_state = Tea()


def test_what_a_forward_refers_to_outside_the_model_is_looked_at_before_every_call() -> None:
    options = {"scale": 2.0}
    small = model(lambda self, x: self.a(x) * options["scale"])
    compiled = synccache.compile(small, "exact")
    for scale in (2.0, 3.0, 2.0):
        options["scale"] = scale
        assert same(small(x_of(0)), compiled(x_of(0)))
    assert compiled.captures == 2


def test_a_log_that_a_forward_writes_is_let_pass() -> None:
    log: list[int] = []

    def forward(self: Model, x: Tensor) -> Tensor:
        log.append(x.shape[1])
        return self.a(x)

    check(model(forward), captures=2)


def test_a_buffer_counted_up_in_place_is_refused_with_its_line() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        self.steps.add_(1)
        return self.a(x) + self.steps

    small = model(forward)
    small.register_buffer("steps", torch.zeros(1))
    with pytest.raises(CaptureError, match=r"`steps` of the model in place \(test_fx_capture"):
        synccache.compile(small, "exact")(x_of(0))


def test_a_table_filled_by_the_first_forward_becomes_a_constant() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        if getattr(self, "tokens", None) != x.shape[1]:
            self.tokens = x.shape[1]
            self.table = torch.arange(x.shape[1])[:, None] / WIDTH
        return self.a(x) + self.table

    small = model(forward)
    compiled = synccache.compile(small, "exact")
    reference = copy.deepcopy(small)
    for seed, tokens in ((0, 3), (1, 5), (2, 3), (3, 5)):
        x = x_of(seed, tokens)
        assert same(reference(x), compiled(x))
    assert compiled.captures == 2


def test_plain_tensor_attributes_are_live() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        return self.a(x) * self.table + self.tables[0]

    small = model(forward)
    small.table, small.tables = torch.ones(WIDTH), [torch.ones(WIDTH)]
    compiled = synccache.compile(small, "exact")
    assert same(small(x_of(0)), compiled(x_of(0)))
    small.table = torch.full((WIDTH,), 2.0)
    compiled.reset()

    assert same(small(x_of(1)), compiled(x_of(1)))


# ------------------------------------------------------------------- modules


def test_a_forward_replaced_on_the_instance() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        return self.a(x)

    small = model(forward)
    small.forward = lambda x: small.b(x) * 2  # type: ignore[method-assign]

    check(small)


class Block(Model):
    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block.b(torch.relu(block.a(x)))
        return x


def test_blocks_whose_sub_modules_are_called_from_elsewhere() -> None:
    check(Outer())


def test_an_autocast_region_inside_the_forward() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            h = self.a(x)
            with torch.autocast("cpu", enabled=False):
                h = self.b(h.float())
            h = self.c(h)
        return self.a(h.float())

    small = model(forward)
    check(small)
    with torch.autocast("cpu", torch.bfloat16):
        check(small)


def test_a_call_with_and_without_autocast_is_two_recordings() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        return self.b(self.a(x))

    small = model(forward)
    compiled = synccache.compile(small, "exact")
    for enabled in (False, True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            assert same(small(x_of(0)), compiled(x_of(0)))
    assert compiled.captures == 2


def test_random_numbers_follow_the_seed() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        noise = torch.randn_like(x)
        torch.rand(1)  # not used, but the next draw is another one because of it
        return self.a(x + noise) * torch.rand(1)

    small = model(forward)
    compiled = synccache.compile(small, "exact")
    for seed in range(3):
        torch.manual_seed(seed)
        expected, then = small(x_of(seed)), torch.rand(1)
        torch.manual_seed(seed)
        assert same(expected, compiled(x_of(seed)))
        assert same(then, torch.rand(1))


class WithCompiled(Model):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.compile(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()), backend="eager"
        )


def test_a_compiled_module_is_called_whole() -> None:
    def forward(self: WithCompiled, x: Tensor) -> Tensor:
        return self.b(self.inner(self.a(x)))

    with torch.no_grad():
        compiled = check(model(forward, WithCompiled))

    assert any(n.target == "model.inner" for n in compiled.variant.captured.graph.nodes)


def test_a_compiled_function_is_recorded_through() -> None:
    gelu = torch.compile(lambda x: torch.nn.functional.gelu(x) * 2, backend="eager")

    def forward(self: Model, x: Tensor) -> Tensor:
        return self.b(gelu(self.a(x)))

    with torch.no_grad():
        compiled = check(model(forward))

    targets = [str(n.target) for n in compiled.variant.captured.graph.nodes]
    assert any("gelu" in target for target in targets)


def test_hooks_on_sub_modules_run_on_every_call() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        return self.b(self.a(x))

    small, seen = model(forward), []
    small.a.register_forward_hook(lambda module, args, out: out * 2)
    small.b.register_forward_pre_hook(lambda module, args: seen.append(1))
    compiled = check(small)
    seen.clear()
    compiled(x_of(0))

    assert len(seen) == 1


def test_hooks_on_the_model_itself_are_refused() -> None:
    small = model(lambda self, x: self.a(x))
    small.register_forward_hook(lambda module, args, out: out)
    with pytest.raises(CaptureError, match="1 forward hooks on the model itself"):
        synccache.compile(small, "exact")(x_of(0))


class LowRank(nn.Module):
    """What a LoRA library puts in a linear layer's place."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.down = base, nn.Linear(WIDTH, 1, bias=False)
        self.up = nn.Linear(1, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


@torch.no_grad()
def test_a_linear_layer_replaced_after_compiling_takes_effect() -> None:
    small = Outer()
    compiled = synccache.compile(small, "exact")
    assert same(small(x_of(0)), compiled(x_of(0)))
    small.blocks[1].a = LowRank(small.blocks[1].a)

    assert same(small(x_of(1)), compiled(x_of(1)))


@torch.no_grad()
def test_weights_changed_in_place_take_effect() -> None:
    small = model(lambda self, x, text: self.a(x) + self.b(text))
    compiled, text = synccache.compile(small, "exact"), x_of(9)
    assert same(small(x_of(0), text), compiled(x_of(0), text))
    small.a.weight.mul_(2)
    small.b.weight.data = torch.ones(WIDTH, WIDTH)
    compiled.reset()

    assert same(small(x_of(1), text), compiled(x_of(1), text))


def test_the_compiled_model_can_be_copied_and_pickled() -> None:
    small = Outer()
    compiled = synccache.compile(small, "exact")
    expected = compiled(x_of(0))
    for twin in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        assert same(expected, twin(x_of(0)))
        assert twin.blocks[0] is not small.blocks[0]


def test_the_compiled_model_is_the_model_to_whoever_asks() -> None:
    small = Outer()
    small.config = {"depth": 2}
    compiled = synccache.compile(small, "exact")
    compiled(x_of(0))

    assert list(compiled.state_dict()) == list(small.state_dict())
    assert [n for n, _ in compiled.named_modules()] == [n for n, _ in small.named_modules()]
    assert compiled.config is small.config
    assert compiled.blocks is small.blocks
    compiled.to(torch.float64)
    assert small.blocks[0].a.weight.dtype == torch.float64
    assert same(small(x_of(0).double()), compiled(x_of(0).double()))


def test_tensors_made_in_inference_mode_can_be_passed() -> None:
    with torch.inference_mode():
        x = x_of(0)
    small = model(lambda self, x: self.a(x) * 2)
    with torch.no_grad():
        assert same(small(x), synccache.compile(small, "exact")(x))


# ------------------------------------------------------------------- the recording itself


def test_a_recording_holds_no_intermediate_tensor() -> None:
    held: list[Any] = []

    def forward(self: Model, x: Tensor) -> Tensor:
        from weakref import ref

        h = self.a(x)
        reference = ref(h)
        h = self.b(h)
        held.append(reference())
        return h

    small = model(forward)
    with torch.no_grad():
        out, captured = capture(small, (x_of(0),), {})

    assert held and all(still is None for still in held)
    assert [n.target for n in captured.graph.nodes if n.op == "call_module"] == [
        "model.a",
        "model.b",
    ]
    assert torch.equal(out, small(x_of(0)))


def test_an_opaque_value_of_the_forward_is_named_in_the_error() -> None:
    def forward(self: Model, x: Tensor) -> Tensor:
        return self.a(x).data_ptr() and x  # type: ignore[return-value]

    with pytest.raises(SynccacheError, match="data_ptr"):
        synccache.compile(model(forward), "exact")(x_of(0))
