"""From a policy's selectors to regions of the residual program, or the reason why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from synccache.errors import MatchError
from synccache.fx.program import Branch, ResidualProgram
from synccache.fx.taps import Taps, find_taps, probes_of
from synccache.policies import dsl
from synccache.policies.dsl import Policy, Rule


@dataclass(frozen=True, slots=True)
class RuleMatch:
    """What one rule means on one model: branches to skip, and where its probes are read."""

    rule: Rule
    skip: frozenset[int]  # branch indices
    planned: bool  # the planner may merge runs
    taps: dict[dsl.Probe, Taps]  # what the gate reads before it decides


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
    taps = {p: find_taps(p, skip, program, select, where) for p in probes_of(rule)}
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


def label_run(branches: tuple[Branch, ...]) -> str:
    """``blocks.3.attn`` to ``blocks.5.ffn`` as ``blocks.3.attn - blocks.5.ffn``."""
    first, last = branches[0].label, branches[-1].label
    return first if first == last else f"{first} - {last}"
