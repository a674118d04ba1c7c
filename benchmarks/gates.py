"""What a decision costs: a skipped step of every policy against the operations that it must still run.

    python benchmarks/gates.py --pairs 20

On a diffusers Wan with random weights, wide enough that multiplications take the time. A skipped step is
the compiled model's whole call: reading the timestep, the gate, the probe's metric, what is put in place
of the skipped branches, and everything live. Beside it, in turn with the same inputs, runs a graph of the
live operations alone: its gates, held tensors and kept values are constants. The ratio is the median over
pairs. Syncs are device-to-host transfers of one call beyond the one that reads the timestep.
"""

import argparse
import operator
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.fx import Graph, GraphModule, Interpreter, Node

import synccache
from synccache import policies
from synccache.policies.dsl import Policy, branches, inf

STEPS = 64  # of one run; skipped steps beyond the pairs asked for are not timed
LAYERS, WIDTH, TOKENS = 2, 512, 1024
OWN_LINES = ("gate_", "region_", "invariant_", "constants_", "after_", "shadow_", "clusters_")

RATIOS = (1.0,) * 50
CURVATURE = tuple(float(k % 3) for k in range(STEPS))

SETTINGS: Mapping[str, Policy] = {  # thresholds that never forbid: what is computed then is forced
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
    "magcache": policies.magcache(inf, ratios=RATIOS),
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
    "asymmetric": "needs an audio input",
    "exact": "skips nothing",
    "fastercache": "skips attention on one guidance branch and the network on the other",
    "planned": "is a step mask with weights that a calibration fits",
}


@dataclass(frozen=True)
class Cost:
    """Medians over skipped steps, in seconds and as a ratio; syncs of one call."""

    skipped: float
    live: float
    whole: float  # the model itself
    ratio: float
    syncs: float
    pairs: int


def model_and_inputs() -> tuple[nn.Module, Callable[[int], dict[str, Any]]]:
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


def live_alone(module: GraphModule, arguments: tuple[Any, ...]) -> GraphModule:
    """The graph with every line of the policy's own replaced by what it gave on one skipped step.

    What gates read stays, and what held tensors are added to: a skipped step must still run these.
    """
    recording = _Recording(module)
    recording.run(*arguments)
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


class Skipped:
    """Times the compiled model step after step, and on skipped steps the live operations beside it."""

    def __init__(self, policy: Policy) -> None:
        self.model, self.inputs = model_and_inputs()
        self.compiled = synccache.compile(self.model, policy)
        self.compiled.begin(steps=STEPS)
        self.bare: GraphModule | None = None
        self.arguments: tuple[Any, ...] = ()
        self.skipped: list[float] = []
        self.live: list[float] = []
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
            self.bare = live_alone(self.compiled.graph_module, self.arguments)
            _seconds(self.bare, *self.arguments)  # warms up
        else:
            self.syncs.append(self._syncs() - before - 1)
            self.live.append(_seconds(self.bare, *self.arguments))
            self.skipped.append(seconds)

    def _watch(self, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments

    def _syncs(self) -> int:
        return self.compiled.stats().syncs if self.compiled.captures else 0


def _seconds(call: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    started = time.perf_counter()
    with torch.no_grad():
        call(*args, **kwargs)
    return time.perf_counter() - started


def cost_of(policy: Policy, pairs: int) -> Cost:
    run = Skipped(policy)
    for step in range(STEPS):
        run.call(step, "cond")
        if len(run.live) >= pairs:
            break
    return Cost(
        statistics.median(run.skipped),
        statistics.median(run.live),
        statistics.median(_seconds(run.model, **run.inputs(k)) for k in range(3)),
        statistics.median(a / b for a, b in zip(run.skipped, run.live, strict=True)),
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
    table = Table("policy", "skipped ms", "live ms", "ratio", "of the model", "syncs", "pairs")
    for name in arguments.policy or SETTINGS:
        cost = cost_of(SETTINGS[name], arguments.pairs)
        table.add_row(
            name,
            f"{1000 * cost.skipped:.1f}",
            f"{1000 * cost.live:.1f}",
            f"{cost.ratio:.3f}",
            f"{cost.skipped / cost.whole:.1%}",
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
