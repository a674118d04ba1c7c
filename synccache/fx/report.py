"""What a compiled model says of itself: its code, its regions, its last run."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.fx import GraphModule, Node

from synccache.fx.gate import Gate
from synccache.fx.program import Branch, ResidualProgram
from synccache.fx.reasons import mask_line, why_nothing
from synccache.fx.rewrite import Enclosed
from synccache.fx.rows import rows
from synccache.fx.runs import RunForm
from synccache.fx.runtime import AudioWrites, Invariant, Trajectory, bytes_held, host_bytes_held
from synccache.fx.shadow import ExactError
from synccache.fx.siblings import SiblingRegion
from synccache.fx.skip import SkipRegion
from synccache.fx.tokens import Clusters, TokenRegion
from synccache.fx.variant import Variant
from synccache.planner import format_bytes
from synccache.policies.describe import describe
from synccache.policies.dsl import AUDIO

if TYPE_CHECKING:
    from synccache.fx.cached_model import CachedModel


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures of one trajectory.

    Attributes:
        decisions: guidance branch -> one letter a step, C computed or S skipped (in part or whole).
        executed_fraction: FLOPs of visual branches (those that read no audio) that ran, over those of
            the uncached model: the share of visual block forwards.
        flops_fraction: the same for all FLOPs of the forward, audio, embedding and head included, and
            step-invariant values found in place counted as saved.
        seconds_fraction: the same in seconds of the operations of the recorded forward;
            1 / seconds_fraction is the speed-up that what was executed allows.
        bytes_held: what the trajectory keeps between calls; planned_bytes: what the plan allowed;
            host_bytes_held: what the plan keeps of it in main memory instead.
        forced: steps computed although the policy said skip, because nothing was held yet.
        syncs: device-to-host transfers, one a call for the timestep and one a measuring gate.
        captures: forwards recorded since compile(); seconds of recording, planning, rewriting.
        note: why nothing was skipped, if so.
    """

    decisions: Mapping[Hashable, str]
    executed_fraction: float
    flops_fraction: float
    seconds_fraction: float
    bytes_held: int
    host_bytes_held: int
    planned_bytes: int
    forced: int
    syncs: int
    captures: int
    capture_seconds: float
    plan_seconds: float
    rewrite_seconds: float
    note: str


def _brought(compiled: CachedModel, variant: Variant) -> list[Tensor]:
    """What the model brings: parameters, buffers, tensors on modules, tensors from nowhere."""
    model = compiled.model
    found = [*model.parameters(), *model.buffers()]
    found += [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    return found + [v for v in variant.captured.constants.values() if isinstance(v, Tensor)]


def stats(compiled: CachedModel, trajectory: Trajectory) -> Stats:
    """Figures of a trajectory of ``compiled``."""
    variant = compiled.variant
    branches = trajectory.branches
    decisions = {k: "".join(s.decisions) for k, s in branches.items()}
    forwards = sum(len(d) for d in decisions.values())
    skipped = sum(s.visual_flops_skipped for s in branches.values())
    saved = sum(s.flops_saved for s in branches.values())
    visual = variant.visual_flops * forwards
    total, seconds = variant.flops * forwards, variant.seconds * forwards
    return Stats(
        decisions=decisions,
        executed_fraction=_left(skipped, visual),
        flops_fraction=_left(saved, total),
        seconds_fraction=_left(sum(s.seconds_saved for s in branches.values()), seconds),
        bytes_held=bytes_held(trajectory, _brought(compiled, variant)),
        host_bytes_held=host_bytes_held(trajectory),
        planned_bytes=variant.plan.memory.cache_bytes if variant.plan else 0,
        forced=sum(s.forced for s in branches.values()),
        syncs=trajectory.syncs,
        captures=compiled.captures,
        capture_seconds=float(compiled._capture_seconds),
        plan_seconds=variant.plan_seconds,
        rewrite_seconds=variant.rewrite_seconds,
        note=why_nothing(variant.matches, trajectory, decisions),
    )


def _left(saved: float, total: float) -> float:
    return 1.0 - saved / total if total else 1.0


# ------------------------------------------------------------------------------- code


def listing(variant: Variant) -> str:
    """The emitted forward, one operation a line, with what it is as a comment.

    Where one region holds the network and others lie inside it, its graph follows.
    """
    parts, module = [], variant.emitted.module
    parts.append(_code(module, variant))
    for name, child in module.named_children():
        if isinstance(child, SkipRegion) and isinstance(child.body, Enclosed):
            parts.append(f"# inside {name}\n" + _code(child.body.module, variant))
    return "\n".join(parts)


def _code(module: GraphModule, variant: Variant) -> str:
    code = re.sub(r";(  \w+ =)+ .*?None$", "", module.code.strip(), flags=re.M)
    code = re.sub(r"(;  (\w+ = )+None)$", "", code, flags=re.M)
    code = code.replace("synccache_fx_ops_", "")
    nested = re.compile(r"getattr\(((?:self|model)[\w.\[\]]*), \"(\d+)\"\)")
    while nested.search(code):  # lists in lists, from the inside
        code = nested.sub(r"\1[\2]", code)
    code = re.sub(r"slice\(([-\w]+), ([-\w]+), None\)", _slice, code)
    code = re.sub(r"\[\(([^()]*:[^()]*)\)\]", r"[\1]", code)
    nodes = {n.name: n for n in module.graph.nodes}
    roles = _roles(variant)
    lines = []
    for line in _unpacked(code.splitlines()):
        name = re.match(r"\s+(\w+) = ", line)
        call = re.search(r" = self\.(\w+)\(", line)
        node = nodes.get(name.group(1)) if name else nodes.get(call.group(1)) if call else None
        remark = _remark(node, module, variant, roles) if node is not None else ""
        lines.append(f"{line:<72}  # {remark}" if remark else line)
    return "\n".join(lines) + "\n"


def _slice(found: re.Match[str]) -> str:
    start, stop = (("" if v == "None" else v) for v in found.groups())
    return f"{start}:{stop}"


def _unpacked(lines: list[str]) -> list[str]:
    """``x = f(); a = item(x, 0); b = item(x, 1)`` as ``a, b = f()``."""
    out: list[str] = []
    for line in lines:
        part = re.match(r"(\s+)(\w+) = item\((\w+), (\d+)\)$", line)
        if part and out:
            indent, name, source, index = part.groups()
            whole = re.match(rf"\s+{source} = (.*)$", out[-1])
            if whole and index == "0":
                out[-1] = f"{indent}({name},) = {whole.group(1)}"
                parts = {source: 1}
                continue
            names = re.match(r"\s+\(([\w, ]+?),?\) = (.*)$", out[-1])
            if names and parts.get(source) == int(index):
                parts[source] += 1
                out[-1] = f"{indent}({names.group(1)}, {name}) = {names.group(2)}"
                continue
        out.append(line)
    return [re.sub(r"\((\w+(?:, \w+)*),?\) = ", r"\1 = ", line) for line in out]


def _roles(variant: Variant) -> dict[str, Branch]:
    if variant.program is None:
        return {}
    return {b.label: b for b in variant.program.branches}


def _remark(node: Node, owner: GraphModule, variant: Variant, roles: Mapping[str, Branch]) -> str:
    child = owner.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(child, Gate):
        return f"gate: skip while {describe(child.condition)}"
    if isinstance(child, SkipRegion):
        region = variant.layout.regions[child.index]
        return f"skip branch: {region.label}: computed, or {_instead(child)}"
    if isinstance(child, Clusters):
        return "groups tokens by what they look like, on computed steps"
    if isinstance(child, ExactError):
        return f"on skipped steps: {describe(child.signal)}"
    if isinstance(child, Invariant):
        return "once a trajectory: depends on no input that the loop changes"
    if isinstance(child, AudioWrites):
        return "for the automatic mask: where audio is written"
    shape = node.meta.get("shape")
    facts = [f"{_short(node.meta.get('dtype'))}{list(shape)}"] if shape is not None else []
    origin = node.meta.get("origin", "")
    if origin:
        facts.append(origin)
    audio = [b for label, b in roles.items() if AUDIO in b.reads and _within(label, origin)]
    if audio:
        facts.append("LIVE: reads audio, runs on every step")
    if variant.program is not None and node.name in _probe_names(owner):
        facts.append("PROBE")
    return " ".join(facts)


def _instead(region: SkipRegion) -> str:
    """What a skipped step does in a region's place."""
    if isinstance(region, SiblingRegion):
        return "predicted from the first guidance branch of the step"
    if isinstance(region, TokenRegion):
        return "computed for some tokens, which renew what is held"
    if any(hold.start is None for hold in region.holds):
        return "what is held put in its place"
    return "the held residual added"


def _short(dtype: Any) -> str:
    """``f32`` for torch.float32, ``bf16`` for torch.bfloat16."""
    name = str(dtype).removeprefix("torch.")
    for word, letter in (
        ("bfloat", "bf"),
        ("float", "f"),
        ("complex", "c"),
        ("uint", "u"),
        ("int", "i"),
    ):
        name = name.replace(word, letter)
    return "" if dtype is None else name


def _within(label: str, origin: str) -> bool:
    return bool(origin) and (label == origin or label.startswith(f"{origin}."))


def _probe_names(owner: GraphModule) -> set[str]:
    graph = owner.graph
    gates = [n for n in graph.nodes if n.op == "call_module" and str(n.target).startswith("gate_")]
    return {a.name for g in gates for a in g.args[1:] if isinstance(a, Node)}


# --------------------------------------------------------------------------- explain


_REASONS = 5  # of recordings after the first, that are printed


def explained(compiled: CachedModel, trajectory: Trajectory) -> str:
    """What ``compiled.explain()`` says in this trajectory."""
    reasons = compiled._variants.reasons
    return explanation(compiled.variant, compiled._request, trajectory, reasons)


def explanation(
    variant: Variant, request: Any, trajectory: Trajectory, again: Sequence[str] = ()
) -> str:
    """Conditions, streams and branches (repeating blocks folded), rules, plan."""
    captured = variant.captured
    lines = [f"policy      {request.policy.name}: {len(request.policy.rules)} rule(s)"]
    inputs = ", ".join(f"{n.name} = {t}" for n, t in variant.tags.items())
    lines.append(f"conditions  {inputs}")
    lines.append(f"recorded    {len(captured.graph.nodes)} operations in {captured.seconds:.3f} s"
                 + (f"; kept closed: {', '.join(captured.closed)}" if captured.closed else ""))  # fmt: skip
    lines += [f"again       {reason}" for reason in again[-_REASONS:]]
    if variant.emitted.invariants:
        lines.append(f"exact       kept once a trajectory: {', '.join(variant.emitted.invariants)}")
    if captured.split:
        lines.append(
            f"split       at their sums, equal to the model but for rounding: {', '.join(captured.split)}"
        )
    if variant.program is not None:
        lines += _stream_lines(variant.program)
        lines += _branch_table(variant)
    for i, found in enumerate(variant.matches):
        lines.append(f"rule {i + 1}      skip while {describe(found.rule.when)}")
        count = sum(i in r.rules for r in variant.layout.regions)
        form = _FORMS[found.skipped.form]
        reuse = describe(found.rule.reuse)
        lines.append(f"            {len(found.skip)} branches in {count} regions, {reuse}{form}")
        if found.payback is not None and found.payback.strength:
            lines.append(f"            {describe(found.payback)}")
        lines += [f"            tokens: {found.rule.tokens!r}"] if found.rule.tokens else []
        fixed = mask_line(found.rule, trajectory.steps)
        lines += [f"            {fixed}"] if fixed else []
    for name in sorted(_mask_names(variant)):
        watched = any(isinstance(m, AudioWrites) for m in variant.emitted.module.children())
        found_by = (
            "given"
            if name in variant.masks
            else "found from what the audio branches write"
            if watched
            else f"NONE, all tokens weigh alike: no audio branch runs where its write can be seen; "
            f"pass masks={{{name!r}: ...}}"
        )
        lines.append(f"mask        {name}: {found_by}")
    if not variant.matches:
        lines.append("skipped     nothing: the policy has no rules; only exact savings apply")
    decisions = {k: "".join(state.decisions) for k, state in trajectory.branches.items()}
    nothing = why_nothing(variant.matches, trajectory, decisions)
    if trajectory.step > 0 and nothing:
        lines.append(f"last run    {nothing}")
    if request.goal is not None:
        lines += ["", str(request.goal)]
    if variant.schedule is not None:
        lines += ["", str(variant.schedule)]
    if variant.plan is not None:
        lines += ["", str(variant.plan)]
    return "\n".join(lines)


_FORMS = {
    RunForm.RESIDUAL: "",
    RunForm.WHOLE: "",
    RunForm.VALUE: ", values held",
    RunForm.MODULE: ", each before its gate",
    RunForm.NETWORK: ", the whole network",
}


def _mask_names(variant: Variant) -> set[str]:
    text = " ".join(repr(m.rule.when) for m in variant.matches)
    return set(re.findall(r"MaskWeight\(name='(\w+)'", text))


def _stream_lines(program: ResidualProgram) -> list[str]:
    return [
        f"stream {s.index}    begins at {s.root.name} {list(s.root.meta['shape'])}, "
        f"reads {', '.join(sorted(s.reads)) or 'nothing'}; {len(program.of_stream(s.index))} branches"
        for s in program.streams
    ]


def _branch_table(variant: Variant) -> list[str]:
    assert variant.program is not None
    table = rows(variant.program, variant.layout)
    total = sum(r.flops for r in table) or 1
    head = f"{'block':<10}{'branch':<34}{'kind':<11}{'reads':<26}"
    lines = [f"{head}{'recorded':>10}{'FLOPs':>8}  on a skipped step"]
    for row in table:
        branch = row.branch
        reads = " ".join(sorted(branch.reads | {f"stream{s}" for s in branch.other_streams}))
        lines.append(
            f"{row.blocks if row.begins else '':<10}{branch.label[-33:]:<34}{branch.kind.value:<11}{reads:<26}"
            f"{row.seconds * 1e3:>7.1f} ms{row.flops / total:>8.1%}  {row.fate}"
        )
    return lines


__all__ = ["Stats", "describe", "explanation", "format_bytes", "listing", "stats"]
