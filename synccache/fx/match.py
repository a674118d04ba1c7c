"""From a policy's selectors to regions of the residual program, or the reason why not."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from torch.fx import Node

from synccache.errors import MatchError
from synccache.fx.conditions import SAMPLE, nodes_tagged
from synccache.fx.modules import module_outputs
from synccache.fx.program import ResidualProgram
from synccache.fx.runs import RunForm, Skipped
from synccache.fx.taps import Taps, find_taps, probes_of
from synccache.policies import dsl
from synccache.policies.disjoint import disjoint
from synccache.policies.dsl import Policy, Rule

GRID_DIMS = 4  # [batch, channels, (frames,) height, width]


@dataclass(frozen=True, slots=True)
class RuleMatch:
    """What one rule means on one model: branches to skip, and where its probes are read."""

    rule: Rule
    skipped: Skipped
    planned: bool  # the planner may merge runs
    taps: dict[dsl.Probe, Taps]  # what the gate reads before it decides
    payback: dsl.Payback | None = None
    where: str = ""  # the policy, the model and the rule, for messages

    @property
    def keep(self) -> int:
        """Tensors held for each run, by the predictor and for interpolation."""
        paid = self.payback.history if self.payback is not None else 1
        return max(self.rule.reuse.history, paid)

    @property
    def is_planned_ahead(self) -> bool:
        """Whether schedule and weights were chosen together, so that neither may change alone."""
        return self.payback is not None or isinstance(self.rule.reuse, dsl.Fitted)

    @property
    def skip(self) -> frozenset[int]:
        """Indices of the branches that the rule skips."""
        return self.skipped.branches


def select(selector: dsl.Selector, program: ResidualProgram) -> frozenset[int]:
    """Indices of the branches that a selector names."""
    return _SELECT[type(selector)](selector, program)


def _blocks(s: dsl.Blocks, program: ResidualProgram) -> frozenset[int]:
    chosen = set(range(program.blocks)[s.start : s.stop])
    return frozenset(b.index for b in program.branches if b.block in chosen)


def _after(s: dsl.After, program: ResidualProgram) -> frozenset[int]:
    inner = select(s.of, program)
    if not inner:
        return frozenset()
    return frozenset(b.index for b in program.branches if b.index > max(inner))


_SELECT: dict[type, Callable[..., frozenset[int]]] = {
    dsl.AllBranches: lambda s, p: frozenset(b.index for b in p.branches),
    dsl.Blocks: _blocks,
    dsl.Reading: lambda s, p: frozenset(b.index for b in p.branches if s.tag in b.reads),
    dsl.OfKind: lambda s, p: frozenset(b.index for b in p.branches if b.kind is s.kind),
    dsl.After: _after,
    dsl.Either: lambda s, p: select(s.left, p) | select(s.right, p),
    dsl.Both: lambda s, p: select(s.left, p) & select(s.right, p),
    dsl.Without: lambda s, p: select(s.left, p) - select(s.right, p),
}


def match(
    policy: Policy, program: ResidualProgram, model_name: str, settled: Collection[Node] = ()
) -> tuple[RuleMatch, ...]:
    """Each rule's branches and probes.

    Args:
        settled: values that no denoising step changes; nobody holds them twice.

    Raises:
        MatchError: a selector names nothing, two rules skip one branch, a condition that the
            policy names is no input of this model, a probe lies behind what it decides about, or
            the network's output has another shape than its sample.
    """
    where = f"{policy.name} on {model_name}"
    matches = tuple(
        _match_rule(rule, i, program, where, settled) for i, rule in enumerate(policy.rules)
    )
    matches = tuple(replace(found, payback=policy.payback) for found in matches)
    whole = [i for i, found in enumerate(matches) if found.skipped.form is RunForm.NETWORK]
    for i, found in enumerate(matches):
        if i in whole[:1]:
            _check_outer(found, i, len(matches), where)
            continue  # the other rules' regions lie inside it
        for j, other in enumerate(matches[:i]):
            both = found.skip & other.skip
            if both and j not in whole[:1] and not _may_share(found, other):
                raise MatchError(
                    f"rules {j + 1} and {i + 1} both skip {program.branches[min(both)].label}.",
                    where=where, hint="Take it out of one of them with `-`, or give both the same reuse "
                    "and conditions that are never true together, e.g. step < 10 and step >= 10.",
                )  # fmt: skip
    return matches


def _match_rule(
    rule: Rule, number: int, program: ResidualProgram, where: str, settled: Collection[Node]
) -> RuleMatch:
    selector = dsl.selector_of(rule.skip)
    skip = select(selector, program)
    where = f"{where}, rule {number + 1}"
    if not skip and not isinstance(rule.skip, dsl.Nothing):
        raise MatchError(
            f"{selector!r} selects 0 of {len(program.branches)} branches in {program.blocks} blocks.",
            where=where, hint="Print compiled.explain() to see the branches and what they read.",
        )  # fmt: skip
    _check_tags(selector, program, where)
    inside = frozenset() if isinstance(rule.skip, dsl.Whole) else skip
    taps = {p: find_taps(p, inside, program, select, where) for p in probes_of(rule)}
    skipped = _skipped(rule.skip, skip, program, where, settled)
    if isinstance(rule.reuse, dsl.FromSibling):
        for _, end in skipped.whole:
            _check_grid(end, where)
    if isinstance(rule.reuse, dsl.Split) and rule.reuse.transform is dsl.GRID_DCT:
        _check_square(skipped, program, where)
    planned = isinstance(rule.skip, dsl.Segments)
    return RuleMatch(rule, skipped, planned, taps, where=where)


def _skipped(
    skip: dsl.Skip, chosen: frozenset[int], program: ResidualProgram, where: str,
    settled: Collection[Node],
) -> Skipped:  # fmt: skip
    if isinstance(skip, dsl.Modules):
        ends = module_outputs(program, chosen, before_gate=skip.before_gate, settled=settled)
        if not ends:
            raise MatchError(
                f"{skip!r} selects {len(chosen)} branches, all of which only add an input, another "
                "stream or a value that no step changes: there is nothing to skip in them.",
                where=where, hint="Select branches.attention or branches.mlp.",
            )  # fmt: skip
        return Skipped(frozenset(ends), RunForm.MODULE, ends)
    if isinstance(skip, dsl.Network) or isinstance(skip, dsl.Values) and skip.of == dsl.network:
        residual = isinstance(skip, dsl.Network)
        return Skipped(chosen, RunForm.NETWORK, whole=_whole(program, residual, where))
    if isinstance(skip, dsl.Whole):
        return Skipped(chosen, RunForm.WHOLE)
    return Skipped(chosen, RunForm.VALUE if isinstance(skip, dsl.Values) else RunForm.RESIDUAL)


def _whole(
    program: ResidualProgram, residual: bool, where: str
) -> tuple[tuple[Node | None, Node], ...]:
    """The model's outputs, each with the sample that its residual is taken from."""
    outputs = program.captured.graph.output_node().all_input_nodes
    if not residual:
        return tuple((None, end) for end in outputs)
    samples = nodes_tagged(program.tags, SAMPLE)
    shapes = [[list(n.meta["shape"]) for n in nodes] for nodes in (samples, outputs)]
    if shapes[0] != shapes[1]:
        raise MatchError(
            f"network holds output - sample, but the sample {' and '.join(map(str, shapes[0]))} has "
            f"another shape than the output {' and '.join(map(str, shapes[1]))}.",
            where=where, hint="Use values(network), which holds the output itself.",
        )  # fmt: skip
    return tuple(zip(samples, outputs))


def _check_tags(selector: dsl.Selector, program: ResidualProgram, where: str) -> None:
    present = set(program.tags.values())
    for name in ("left", "right", "of"):
        inner = getattr(selector, name, None)
        if isinstance(inner, dsl.Selector):
            _check_tags(inner, program, where)
    if isinstance(selector, dsl.Reading) and selector.tag not in present:
        inputs = ", ".join(
            f"{program.captured.parameter_of(n)} = {t}" for n, t in program.tags.items()
        )
        raise MatchError(
            f"no input is marked as {selector.tag}; the inputs are {inputs}.",
            where=where, hint=f"Pass conditions={{{selector.tag!r}: ['<argument name>']}} to compile().",
        )  # fmt: skip


def _check_grid(end: Node, where: str) -> None:
    """Raises: MatchError where an output has no rows and columns to split over."""
    if len(end.meta["shape"]) < GRID_DIMS:
        raise MatchError(
            "FromSibling splits the model's output over height and width, but it has the shape "
            f"{list(end.meta['shape'])}.",
            where=where, hint="Use it on a model whose output is [batch, channels, ..., height, width].",
        )  # fmt: skip


def _may_share(a: RuleMatch, b: RuleMatch) -> bool:
    """Whether two rules may skip the same branches: on other steps, with the same in their place."""
    alike = a.rule.reuse == b.rule.reuse and a.skipped.form is b.skipped.form and a.keep == b.keep
    simple = a.skipped.form in (RunForm.RESIDUAL, RunForm.VALUE, RunForm.MODULE)
    tokens = a.rule.tokens is not None or b.rule.tokens is not None
    return alike and simple and not tokens and disjoint(a.rule.when, b.rule.when)


def _check_outer(found: RuleMatch, index: int, rules: int, where: str) -> None:
    """Raises: MatchError where a rule for the network, beside others, watches the network's inside."""
    inside = [n for taps in found.taps.values() for n in taps.nodes if n.op != "placeholder"]
    if inside and rules > 1:
        raise MatchError(
            f"the rule skips the whole network, with what other rules skip inside it, but its condition "
            f"reads {inside[0].name}, which lies inside as well.",
            where=f"{where}, rule {index + 1}", hint="Watch the latent, or nothing.",
        )  # fmt: skip


def _check_square(skipped: Skipped, program: ResidualProgram, where: str) -> None:
    """Raises: MatchError where tokens are no square grid."""
    ends = [*skipped.ends.values(), *(end for _, end in skipped.whole)]
    ends = ends or [program.branches[i].after for i in skipped.branches]
    for shape in (tuple(end.meta["shape"]) for end in ends):
        tokens = shape[-2] if len(shape) > 1 else 1
        if math.isqrt(tokens) ** 2 != tokens:
            raise MatchError(
                f"{tokens} tokens of {list(shape)} are no square grid, which Split(transform=GRID_DCT) "
                "needs.", where=where, hint="Use Split(transform=TOKEN_FFT).",
            )  # fmt: skip
