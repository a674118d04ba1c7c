"""What a decision costs: a skipped step of every policy against the operations that it must still run.

    python benchmarks/gates.py --pairs 8

On a diffusers Wan with random weights (asymmetric: on a Wan-S2V), wide enough that multiplications take
the time. A skipped step is the compiled model's whole call: reading the timestep, the gate, the probe's
metric, what is put in place of the skipped branches, and everything live. Beside it, in turn with the
same inputs, run

- *live*: a graph of the live operations alone; its gates, held tensors and kept values are constants;
- *by hand*: the same graph, then the arithmetic that the method prescribes for a skipped step, in plain
  torch: the metric of each probe, filtered first where the method filters, read as a number; the weighted
  sum of what is held; its addition to the stream. Nothing is checked, looked up, copied or counted.

Times are processor time; ratios are medians over pairs. Syncs are device-to-host transfers of one call
beyond the one that reads the timestep. Tokens and blocks that ClusCa, ToCa, DuCa and SpeCa compute on
skipped steps are in neither.
"""

import argparse
import operator
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node
from wide_models import wan_s2v

import synccache
from synccache import policies
from synccache.fx.gate import Gate
from synccache.fx.runtime import Call
from synccache.fx.skip import SkipRegion
from synccache.policies import dsl
from synccache.policies.dsl import Policy, branches, inf

STEPS = 64  # of one run; skipped steps beyond the pairs asked for are not timed
LAYERS, WIDTH, TOKENS = 2, 512, 4096
OWN_LINES = ("gate_", "region_", "invariant_", "constants_", "after_", "shadow_", "clusters_")

RATIOS = (1.0,) * 50
CURVATURE = tuple(float(k % 3) for k in range(STEPS))

SETTINGS: Mapping[str, Policy] = {  # thresholds that never forbid: what is computed then is forced
    "asymmetric": policies.asymmetric(inf),
    "avatar_schedule": policies.avatar_schedule(),
    "blockdance": policies.blockdance(LAYERS // 2),
    "clusca": policies.clusca(),
    "confidence_taylor": policies.confidence_taylor(inf),
    "dbcache": policies.dbcache(inf, front=1, warmup=2),
    "delta_dit": policies.delta_dit(LAYERS // 2),
    "dicache": policies.dicache(inf),
    "duca": policies.duca(),
    "easycache": policies.easycache(inf),
    "first_block_cache": policies.first_block_cache(inf),
    "fora": policies.fora(),
    "freqca": policies.freqca(),
    "hicache": policies.hicache(),
    "magcache": policies.magcache(inf, ratios=RATIOS, retention=0.05),
    "omnicache": policies.omnicache(CURVATURE, STEPS // 3),
    "pab": policies.pab(((branches.attention, 2),)),
    "seacache": policies.seacache(inf),
    "speca": policies.speca(inf),
    "step_mask": policies.step_mask("CCSSSSSS" * 8),
    "taylorseer": policies.taylorseer(),
    "taylorseer_lite": policies.taylorseer_lite(),
    "teacache": policies.teacache(inf, polynomial=(1.0, 0.0)),
    "toca": policies.toca(),
}
NOT_HERE = {  # and why
    "exact": "skips nothing",
    "fastercache": "skips attention on one guidance branch and the network on the other",
    "planned": "is a step mask with weights that a calibration fits",
}


@dataclass(frozen=True)
class Cost:
    """Medians over skipped steps, in seconds of processor time and as ratios; syncs of one call."""

    skipped: float
    live: float
    by_hand: float
    ratio: float  # over live
    ratio_by_hand: float
    syncs: float
    pairs: int


def model_and_inputs(audio: bool) -> tuple[nn.Module, Callable[[int], dict[str, Any]]]:
    if audio:
        wide = wan_s2v()
        return wide.model, lambda step: wide.inputs(step, 1000 * (1 - step / STEPS), 0)[1]
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=WIDTH // 64,
        attention_head_dim=64,
        ffn_dim=4 * WIDTH,
        num_layers=LAYERS,
        text_dim=512,
        freq_dim=256,
    )
    text, side = torch.randn(1, 64, 512), int((TOKENS / 4) ** 0.5) * 2
    start, end = torch.randn(2, 1, 16, 4, side, side)

    def inputs(step: int) -> dict[str, Any]:
        level = 1 - step / STEPS
        return {
            "hidden_states": level * start + (1 - level) * end,
            "timestep": torch.tensor([1000 * level]),
            "encoder_hidden_states": text,
        }

    return model.eval().requires_grad_(False), inputs


class _Recording(Interpreter):
    """Runs a graph once and keeps what its own lines gave."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.made: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        found = super().run_node(n)
        if _own(n):
            self.made[n.name] = found
        return found


def _own(node: Node) -> bool:
    return node.op == "call_module" and str(node.target).startswith(OWN_LINES)


def _computes(node: Node, recording: _Recording) -> bool:
    """Whether a line is a region whose gate said: compute."""
    region = str(node.target).startswith("region_")
    return region and recording.made[node.args[1].name] is False


def _starts(module: GraphModule, node: Node) -> list[Any]:
    """What a region adds its held tensors to: computed on every step."""
    holds = getattr(module.get_submodule(str(node.target)), "holds", ())
    return [node.args[2 + hold.start] for hold in holds if hold.start is not None]


def live_alone(module: GraphModule, recording: _Recording) -> GraphModule:
    """The graph with every line of the policy's own replaced by what it gave on one skipped step.

    What gates read stays, and what held tensors are added to: a skipped step must still run these.
    """
    graph, values, probes = Graph(), {}, []
    parts: dict[str, Any] = {}
    for node in module.graph.nodes:
        if node.op == "output":
            graph.output((values[node.args[0][0]], *probes))
        elif _own(node):
            must = node.args[1:] if str(node.target).startswith("gate_") else _starts(module, node)
            probes += [values[a] for a in must if isinstance(a, Node)]
            if _computes(node, recording):  # of a rule that does not skip on this step
                body = f"{node.target}.body"
                values[node] = graph.call_module(body, tuple(values[a] for a in node.args[2:]))
                parts[body] = module.get_submodule(body)
                continue
            name = f"made_{node.name}"
            parts[name] = recording.made[node.name]
            values[node] = graph.create_node("get_attr", name)
        else:
            values[node] = graph.node_copy(node, lambda n: values[n])
            if node.op in ("call_module", "get_attr"):
                parts[str(node.target)] = operator.attrgetter(str(node.target))(module)
    graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output"))
    used = {str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")}
    return GraphModule({name: part for name, part in parts.items() if name in used}, graph)


def arithmetic_of(call: Call, module: GraphModule, recording: _Recording) -> Callable[[], None]:
    """What the method itself computes on a skipped step, written out in plain torch."""
    work: list[Callable[[], object]] = []
    for node in module.graph.nodes:
        if not _own(node):
            continue
        part = module.get_submodule(str(node.target))
        if isinstance(part, Gate):
            values = part._probe_values(tuple(recording.env[a] for a in node.args[1:]))
            measured = [
                s for s in part.signals if isinstance(s, dsl.RelativeL1) and s.probe in values
            ]
            work += [partial(_metric, s, values[s.probe], call) for s in measured]
        elif isinstance(part, SkipRegion) and not _computes(node, recording):
            for i, hold in enumerate(part.holds):
                start = None if hold.start is None else recording.env[node.args[2 + hold.start]]
                held = call.state.held[part.index, i].tensors()
                work.append(partial(_in_place, start, held, part.predictor))

    def run() -> None:
        for piece in work:
            piece()

    return run


def _metric(signal: dsl.RelativeL1, now: Tensor, call: Call) -> float:
    """Any tensor of its shape serves as the reference: how long it takes depends on no value."""
    before, weights = _OTHER.setdefault(now.shape, torch.rand_like(now)), dsl.weights_of(signal)
    for weight in weights:
        if isinstance(weight, dsl.Spectral):
            axes = tuple(range(2, now.dim()))
            half = torch.fft.rfftn(now, dim=axes)
            now = torch.fft.irfftn(half * half.real, s=now.shape[2:], dim=axes)
        elif isinstance(weight, dsl.ChannelStride):
            now, before = now[..., :: weight.n], before[..., :: weight.n]
    change, size = (now - before).abs_(), before.abs()
    if any(isinstance(w, dsl.MaskWeight) for w in weights):
        tokens = torch.ones(now.shape[:-1])
        change, size = change.sum(-1) * tokens, size.sum(-1) * tokens
    return float(change.sum() / size.sum())


_OTHER: dict[torch.Size, Tensor] = {}


def _in_place(start: Tensor | None, held: list[Tensor], predictor: dsl.Predictor) -> Tensor:
    """One pass for each held tensor."""
    if len(held) == 1:
        return held[0] if start is None else start + held[0]
    total = torch.mul(held[0], 0.5) if start is None else torch.add(start, held[0], alpha=0.5)
    for tensor in held[1:]:
        total.add_(tensor, alpha=0.5)
    if isinstance(predictor, dsl.Split):  # another sum, whose low frequencies alone are kept
        change = torch.mul(held[0], 0.5)
        for tensor in held[1:]:
            change.add_(tensor, alpha=0.5)
        half = torch.fft.rfft(change, dim=-2)
        half[..., half.shape[-2] // 2 :, :] = 0
        total.add_(torch.fft.irfft(half, n=change.shape[-2], dim=-2))
    return total


class Skipped:
    """Times the compiled model step after step, and on skipped steps the others beside it."""

    def __init__(self, policy: Policy, audio: bool) -> None:
        self.model, self.inputs = model_and_inputs(audio)
        self.compiled = synccache.compile(self.model, policy)
        self.compiled.begin(steps=STEPS)
        self.bare: GraphModule | None = None
        self.arguments: tuple[Any, ...] = ()
        self.skipped: list[float] = []
        self.live: list[float] = []
        self.by_hand: list[float] = []
        self.syncs: list[int] = []

    def call(self, step: int, name: str) -> None:
        given, before = self.inputs(step), self._syncs()
        if self.bare is not None:  # both find warm memory: the compiled call follows this one
            _seconds(self.bare, *self.arguments)
        with self.compiled.cache_context(name):
            seconds = _seconds(self.compiled, **given)
        if step == 0:  # recorded then; watched from now on
            self.compiled.graph_module.register_forward_pre_hook(self._watch)
        elif self.compiled.stats().decisions[name][-1] == "C":
            return
        elif self.bare is None:
            module, call = self.compiled.graph_module, self.arguments[0]
            recording = _Recording(module)
            recording.run(*self.arguments)
            self.bare = live_alone(module, recording)
            self.arithmetic = arithmetic_of(call, module, recording)
            self._hand_written()  # warms up
        else:
            self.syncs.append(self._syncs() - before - 1)
            self.skipped.append(seconds)
            self.live.append(_seconds(self.bare, *self.arguments))
            self.by_hand.append(_seconds(self._hand_written))

    def _hand_written(self) -> None:
        assert self.bare is not None
        self.bare(*self.arguments)
        self.arithmetic()

    def _watch(self, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments

    def _syncs(self) -> int:
        return self.compiled.stats().syncs if self.compiled.captures else 0


def _seconds(call: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    started = time.process_time()  # of one thread, which never waits
    with torch.no_grad():
        call(*args, **kwargs)
    return time.process_time() - started


def cost_of(policy: Policy, pairs: int, audio: bool) -> Cost:
    run = Skipped(policy, audio)
    for step in range(STEPS):
        run.call(step, "cond")
        if len(run.live) >= pairs:
            break
    return Cost(
        statistics.median(run.skipped),
        statistics.median(run.live),
        statistics.median(run.by_hand),
        statistics.median(a / b for a, b in zip(run.skipped, run.live, strict=True)),
        statistics.median(a / b for a, b in zip(run.skipped, run.by_hand, strict=True)),
        statistics.mean(run.syncs),
        len(run.live),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--policy", action="append", help="only these, by name")
    arguments = parser.parse_args()
    missing = {*policies.LIBRARY} - {*SETTINGS} - {*NOT_HERE}
    assert not missing, f"no setting for {', '.join(sorted(missing))}"
    table = Table(
        "policy", "skipped ms", "live ms", "by hand ms", "/ live", "/ by hand", "syncs", "pairs"
    )
    for name in arguments.policy or SETTINGS:
        cost = cost_of(SETTINGS[name], arguments.pairs, name == "asymmetric")
        table.add_row(
            name,
            f"{1000 * cost.skipped:.1f}",
            f"{1000 * cost.live:.1f}",
            f"{1000 * cost.by_hand:.1f}",
            f"{cost.ratio:.3f}",
            f"{cost.ratio_by_hand:.3f}",
            f"{cost.syncs:.2f}",
            str(cost.pairs),
        )
        print(name, cost, flush=True)
    Console(width=110).print(table)
    for name, why in NOT_HERE.items():
        print(f"left out: {name}, which {why}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
