"""From a policy's selectors to regions of the residual program, or the reason why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.fx import Node

from synccache.errors import MatchError
from synccache.fx.dataflow import backward_closure
from synccache.fx.program import Branch, ResidualProgram
from synccache.policies import dsl
from synccache.policies.dsl import Policy, Rule


@dataclass(frozen=True, slots=True)
class Taps:
    """Where a probe is read: the stream after some branches, and before them for a residual."""

    after: Node
    before: Node | None

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (self.after,) if self.before is None else (self.after, self.before)


@dataclass(frozen=True, slots=True)
class RuleMatch:
    """What one rule means on one model: branches to skip, and where its probes are read."""

    rule: Rule
    skip: frozenset[int]  # branch indices
    planned: bool  # the planner may merge runs
    taps: dict[dsl.Probe, Taps]


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


def match(policy: Policy, program: ResidualProgram, model_name: str) -> tuple[RuleMatch, ...]:
    """Each rule's branches and probes.

    Raises:
        MatchError: a selector names nothing, two rules skip one branch, a condition that the
            policy names is no input of this model, or a probe lies behind what it decides about.
    """
    where = f"{policy.name} on {model_name}"
    matches = tuple(_match_rule(rule, i, program, where) for i, rule in enumerate(policy.rules))
    taken: dict[int, int] = {}
    for i, found in enumerate(matches):
        for index in found.skip:
            if index in taken:
                raise MatchError(
                    f"rules {taken[index] + 1} and {i + 1} both skip {program.branches[index].label}.",
                    where=where, hint="Take it out of one of them with `-`.",
                )  # fmt: skip
            taken[index] = i
    return matches


def _match_rule(rule: Rule, number: int, program: ResidualProgram, where: str) -> RuleMatch:
    selector = dsl.selector_of(rule.skip)
    skip = select(selector, program)
    where = f"{where}, rule {number + 1}"
    if isinstance(rule.skip, (dsl.Values, dsl.Modules, dsl.Network)):
        raise MatchError(f"{rule.skip!r} is not compiled yet.", where=where)
    if isinstance(rule.reuse, dsl.Foca):
        raise MatchError(f"{rule.reuse!r} is not compiled yet.", where=where)
    if not skip:
        raise MatchError(
            f"{selector!r} selects 0 of {len(program.branches)} branches in {program.blocks} blocks.",
            where=where, hint="Print compiled.explain() to see the branches and what they read.",
        )  # fmt: skip
    _check_tags(selector, program, where)
    taps = {}
    for signal in dsl.measured_signals(rule.when):
        while not isinstance(signal, dsl.RelativeL1):
            signal = signal.of  # type: ignore[attr-defined]
        taps[signal.probe] = _taps(signal.probe, skip, program, where)
    return RuleMatch(rule, skip, isinstance(rule.skip, dsl.Segments), taps)


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


def main_stream(program: ResidualProgram) -> int:
    """The stream with the most FLOPs: the one that probes are read on."""
    return max(
        range(len(program.streams)), key=lambda i: sum(b.flops for b in program.of_stream(i))
    )


def _taps(probe: dsl.Probe, skip: frozenset[int], program: ResidualProgram, where: str) -> Taps:
    chosen = [b for b in program.branches if b.index in select(probe.of, program)]
    if not chosen:
        raise MatchError(f"the probe {probe!r} names no branch.", where=where)
    heaviest = max(chosen, key=lambda b: sum(c.flops for c in chosen if c.stream == b.stream))
    stream = main_stream(program)
    if not any(b.stream == stream for b in chosen):
        stream = heaviest.stream  # the main stream begins later: another one goes into it
    mine = [b for b in chosen if b.stream == stream]
    taken = backward_closure([mine[-1].after], set())
    behind = [b for b in program.branches if b.index in skip and b.sum in taken]
    if behind:
        raise MatchError(
            f"the probe {probe!r} reads the stream after {mine[-1].label}, which lies behind "
            f"{behind[0].label}, a branch that this rule skips.",
            where=where, hint="Probe blocks before the first skipped one.",
        )  # fmt: skip
    before = mine[0].before if isinstance(probe, dsl.Residual) else None
    return Taps(mine[-1].after, before)


def label_run(branches: tuple[Branch, ...]) -> str:
    """``blocks.3.attn`` to ``blocks.5.ffn`` as ``blocks.3.attn - blocks.5.ffn``."""
    first, last = branches[0].label, branches[-1].label
    return first if first == last else f"{first} - {last}"
