"""Point-wise branches run for some tokens on a skipped step, and the clusters they are drawn from.

    region(call, skip, h, ...)      compute:   out = body(h, ...)
                                    skip:      fresh = body(h[:, chosen], ...)   into what is held
                                               out = predicted from what is held

That a body treats every token alike is proved on the first step that computes it: run on a few tokens
alone, it must give them what they got among all.

Room for attention: a body that reads other tokens through keys and values only could be run on sliced
queries in the same place; here it is refused by the proof.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from synccache.errors import MatchError
from synccache.fx.held import Held
from synccache.fx.match import RuleMatch, select
from synccache.fx.program import Branch, ResidualProgram, noisy_inputs
from synccache.fx.runtime import Call
from synccache.fx.skip import SkipRegion
from synccache.policies import dsl
from synccache.policies.tokens import OnePerCluster, Score, Tokens, TopTokens

TOKEN_DIMS = 3  # [batch, tokens, channels]
CHUNK = 1 << 24  # numbers in float32 at once while tokens are clustered: 64 MiB
_PROOF_TOKENS = 4
_PROOF_ROUNDINGS = 64  # times the unit of the dtype, of the largest value: other kernels round anew
_STEP_PRIME, _REGION_PRIME = 10_007, 101  # one seed for each step and region


@dataclass(slots=True)
class TokenState:
    """What one rule remembers of tokens for one guidance branch.

    labels: [batch, tokens], the cluster of each token; centroids: [batch, clusters, channels].
    ages: region -> [tokens], skipped steps since each token was computed.
    """

    labels: Tensor | None = None
    centroids: Tensor | None = None
    ages: dict[int, Tensor] = field(default_factory=dict)

    def tensors(self) -> list[Tensor]:
        kept = [t for t in (self.labels, self.centroids) if t is not None]
        return [*kept, *self.ages.values()]


class Clusters(nn.Module):
    """Groups the tokens of a stream on computed steps. ``forward(call, skip, stream)``."""

    def __init__(self, rule: int, tokens: OnePerCluster) -> None:
        super().__init__()
        self.rule, self.tokens = rule, tokens

    def forward(self, call: Call, skip: bool, stream: Tensor) -> None:
        if skip or call.meter is not None:
            return
        state = call.state.tokens.setdefault(self.rule, TokenState())
        chosen = self.tokens
        state.labels, state.centroids = k_means(
            stream.detach().flatten(1, -2), chosen.clusters, chosen.iterations,
            state.centroids, chosen.seed,
        )  # fmt: skip


def k_means(
    points: Tensor,
    clusters: int,
    iterations: int,
    start: Tensor | None,
    seed: int,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """(labels, centroids) by L1 distance; a cluster that loses all its points stays where it was.

    Shapes: points [batch, tokens, channels]; start [batch, clusters, channels] or None for random
    points; labels [batch, tokens].
    """
    batch, tokens, channels = points.shape
    clusters = min(clusters, tokens)
    if start is None or start.shape != (batch, clusters, channels):
        drawn = torch.randperm(tokens, generator=_generator(seed))[:clusters].to(points.device)
        start = points[:, drawn]
    centroids = start.float()
    labels = _nearest(points, centroids, chunk)
    for _ in range(iterations):
        centroids = _means(points, labels, centroids, chunk)
        labels = _nearest(points, centroids, chunk)
    return labels, centroids


def _parts(points: Tensor, chunk: int) -> tuple[Tensor, ...]:
    """A few tokens at a time, so that float32 copies stay small beside the stream."""
    return points.split(max(1, chunk // (points.shape[0] * points.shape[2])), dim=1)


def _nearest(points: Tensor, centroids: Tensor, chunk: int) -> Tensor:
    found = [torch.cdist(p.float(), centroids, p=1.0).argmin(dim=-1) for p in _parts(points, chunk)]
    return torch.cat(found, dim=1)


def _means(points: Tensor, labels: Tensor, centroids: Tensor, chunk: int) -> Tensor:
    """The mean of each cluster; where it lost all its points, its centroid as it was."""
    sums, first = torch.zeros_like(centroids), 0
    for part in _parts(points, chunk):
        mine = labels[:, first : first + part.shape[1], None].expand_as(part)
        sums.scatter_add_(1, mine, part.float())
        first += part.shape[1]
    counts = torch.zeros(centroids.shape[:2], device=points.device)
    counts = counts.scatter_add_(1, labels, torch.ones_like(labels, dtype=counts.dtype))
    means = sums / counts.clamp_min(1.0)[..., None]
    return torch.where(counts[..., None] > 0, means, centroids)


class TokenRegion(SkipRegion):
    """A region whose one branch is point-wise; see the file's docstring.

    Attributes:
        tokens: which tokens a skipped step computes.
        aside: the branch belongs to a stream of conditions (text) beside the clustered one: all its
            tokens are computed and nothing is spread.
    """

    tokens: Tokens
    aside: bool
    rule: int
    label: str

    def set_tokens(self, tokens: Tokens, *, aside: bool, rule: int, label: str) -> TokenRegion:
        self.tokens, self.aside, self.rule, self.label = tokens, aside, rule, label
        self.proved = False
        return self

    def forward(self, call: Call, skip: bool, *inputs: Any) -> Any:
        out = super().forward(call, skip, *inputs)
        if not skip:
            if not self.proved:
                self._prove(inputs, out)
            self._state(call).ages.pop(self.index, None)
        return out

    def _skip(self, call: Call, inputs: tuple[Any, ...]) -> Any:
        held = call.state.held[self.index, 0]
        chosen = self._chosen(call, held) if call.again is None else None
        if chosen is not None:
            self._refresh(call, held, inputs, chosen)
        return super()._skip(call, inputs)

    def _state(self, call: Call) -> TokenState:
        found: TokenState = call.state.tokens.setdefault(self.rule, TokenState())
        return found

    def _chosen(self, call: Call, held: Held) -> Tensor | None:
        """Tokens to compute, [batch, count]; None for none on this step."""
        newest = held.tensors()[-1]
        batch, tokens = newest.shape[:2]
        every = torch.arange(tokens, device=newest.device).expand(batch, tokens)
        streak = call.state.gate(self.rule).streak - 1
        if isinstance(self.tokens, TopTokens) and streak % self.tokens.every:
            return None
        if self.aside:
            return every
        keys = torch.rand(batch, tokens, generator=self._generator(call)).to(newest.device)
        if isinstance(self.tokens, TopTokens):
            return self._top(self._state(call), self.tokens, newest, keys)
        assert isinstance(self.tokens, OnePerCluster)
        state = self._state(call)
        assert state.labels is not None and state.centroids is not None
        return one_of_each(state.labels, state.centroids.shape[1], keys)

    def _generator(self, call: Call) -> torch.Generator:
        seed = getattr(self.tokens, "seed", 0)
        return _generator(seed + _STEP_PRIME * call.trajectory.step + _REGION_PRIME * self.index)

    def _top(self, state: TokenState, tokens: TopTokens, newest: Tensor, keys: Tensor) -> Tensor:
        ages = state.ages.get(self.index)
        if ages is None:
            ages = torch.zeros(newest.shape[:2], dtype=torch.int32, device=newest.device)
        score = _scaled(_SCORES[tokens.score](newest, keys, ages)) + tokens.age * ages
        count = math.ceil(tokens.ratio * newest.shape[1])
        chosen = score.topk(count, dim=1).indices
        state.ages[self.index] = (ages + 1).scatter(1, chosen, 0)
        return chosen

    def _refresh(self, call: Call, held: Held, inputs: tuple[Any, ...], chosen: Tensor) -> None:
        newest = held.tensors()[-1]
        fresh: Tensor = self.body(*_sliced(inputs, newest.shape[:2], chosen)).to(newest.dtype)
        moved = newest.scatter(1, chosen[..., None].expand_as(fresh), fresh)
        if isinstance(self.tokens, OnePerCluster) and not self.aside and self.tokens.spread:
            labels = self._state(call).labels
            assert labels is not None
            moved = torch.lerp(moved, _by_cluster(fresh, labels), self.tokens.spread)
        held.move(moved - newest)
        share = chosen.shape[1] / newest.shape[1]
        call.state.flops_saved -= round(self.flops * share)
        call.state.visual_flops_skipped -= round(self.visual_flops * share)
        call.state.seconds_saved -= self.seconds * share

    def _prove(self, inputs: tuple[Any, ...], out: Tensor) -> None:
        """Raises: MatchError where the body gives tokens something else when run on them alone."""
        batch, tokens = out.shape[:2]
        few = torch.linspace(0, tokens - 1, min(_PROOF_TOKENS, tokens), device=out.device).long()
        few = few.flip(0).expand(batch, -1)
        expected = out.gather(1, few[..., None].expand(-1, -1, out.shape[-1]))
        where = f"tokens of {self.label}"
        hint = "Leave tokens= out for this model, or skip other branches."
        try:
            found = self.body(*_sliced(inputs, out.shape[:2], few))
        except (RuntimeError, IndexError, TypeError) as problem:
            raise MatchError(
                f"this branch cannot be run on {few.shape[1]} of {tokens} tokens: {problem}",
                where=where, hint=hint,
            ) from problem  # fmt: skip
        size = expected.abs().amax().clamp_min(torch.finfo(out.dtype).tiny)
        error = (
            float((found - expected).abs().amax() / size)
            if found.shape == expected.shape
            else math.inf
        )
        if not error <= _PROOF_ROUNDINGS * torch.finfo(out.dtype).eps:
            raise MatchError(
                f"this branch is not point-wise: {few.shape[1]} of {tokens} tokens alone come out {error:.2g} "
                "(relative) from what they are among all.", where=where, hint=hint,
            )  # fmt: skip
        self.proved = True


def one_of_each(labels: Tensor, clusters: int, keys: Tensor) -> Tensor:
    """For each cluster its token with the largest key, [batch, clusters]; token 0 for empty ones."""
    groups = torch.arange(clusters, device=labels.device)[None, :, None]
    mine = labels[:, None, :] == groups
    return torch.where(mine, keys[:, None, :], torch.full_like(keys[:, None, :], -1.0)).argmax(-1)


def _by_cluster(fresh: Tensor, labels: Tensor) -> Tensor:
    """Each token's cluster's fresh value: [batch, clusters, channels] -> [batch, tokens, channels]."""
    return fresh.gather(1, labels[..., None].expand(-1, -1, fresh.shape[-1]))


def _sliced(inputs: tuple[Any, ...], shape: torch.Size, chosen: Tensor) -> list[Any]:
    """Inputs with one row a token cut down to the chosen tokens; others as they are."""
    batch, tokens = shape
    out: list[Any] = []
    for value in inputs:
        by_token = (
            isinstance(value, Tensor) and value.dim() >= 2 and value.shape[1] == tokens
            and value.shape[0] in (1, batch)
        )  # fmt: skip
        if not by_token:
            out.append(value)
            continue
        index = chosen.reshape(*chosen.shape, *(1,) * (value.dim() - 2))
        wide = value.expand(batch, *value.shape[1:])
        out.append(wide.gather(1, index.expand(*chosen.shape, *value.shape[2:])))
    return out


def _norm(newest: Tensor, keys: Tensor, ages: Tensor) -> Tensor:
    return torch.linalg.vector_norm(newest.float(), dim=-1)


def _dissimilarity(newest: Tensor, keys: Tensor, ages: Tensor) -> Tensor:
    mean = newest.float().mean(dim=1, keepdim=True)
    return 1.0 - torch.nn.functional.cosine_similarity(newest.float(), mean, dim=-1)


_SCORES: dict[Score, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    Score.RANDOM: lambda newest, keys, ages: keys,
    Score.NORM: _norm,
    Score.DISSIMILARITY: _dissimilarity,
    Score.STALENESS: lambda newest, keys, ages: ages.float(),
}


def _scaled(score: Tensor) -> Tensor:
    """To [0, 1] over the tokens of each batch item."""
    low, high = score.amin(dim=1, keepdim=True), score.amax(dim=1, keepdim=True)
    return (score - low) / (high - low).clamp_min(torch.finfo(score.dtype).tiny)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _mlps(matched: RuleMatch, program: ResidualProgram) -> list[Branch]:
    """The skipped MLP branches of streams [batch, tokens, channels]."""
    return [
        b for b in program.branches
        if b.index in matched.skip and b.kind is dsl.MLP
        and len(matched.skipped.ends[b.index].meta["shape"]) == TOKEN_DIMS
    ]  # fmt: skip


def _beside(program: ResidualProgram) -> set[int]:
    """Streams of conditions alone (text): the noisy latents do not reach where they begin."""
    noisy = noisy_inputs(program.captured, program.tags)
    return {s.index for s in program.streams if not program.captured.depends[s.root] & noisy}


def clustered(matched: RuleMatch, program: ResidualProgram) -> Branch | None:
    """The branch behind which tokens are clustered; None where the rule clusters none.

    The last that ``on`` names, of the heaviest stream in which the rule skips an MLP.
    """
    tokens = matched.rule.tokens
    if not isinstance(tokens, OnePerCluster):
        return None
    with_mlp = {b.stream for b in _mlps(matched, program)} - _beside(program)
    named = select(tokens.on, program)
    chosen = [b for b in program.branches if b.index in named and b.stream in with_mlp]
    if not chosen:
        raise MatchError(
            f"{tokens!r}: the rule skips no MLP branch in a stream [batch, tokens, channels] of which "
            "on=... names a branch, so no token can be computed.",
            hint="Select MLPs as well, or leave on= out.",
        )  # fmt: skip
    weight = {b.stream: sum(c.flops for c in chosen if c.stream == b.stream) for b in chosen}
    return [b for b in chosen if b.stream == max(weight, key=lambda s: weight[s])][-1]


def token_branches(matched: RuleMatch, program: ResidualProgram) -> dict[int, bool]:
    """Branches that a rule runs token by token -> whether they are aside.

    MLP branches of the clustered stream, and of streams that hold conditions alone (text); for
    ``top_tokens`` of every stream.
    """
    if matched.rule.tokens is None:
        return {}
    mlps, last = _mlps(matched, program), clustered(matched, program)
    if last is None:
        return {b.index: False for b in mlps}
    beside = _beside(program)
    mine = [b for b in mlps if b.stream == last.stream or b.stream in beside]
    return {b.index: b.stream != last.stream for b in mine}


def state_bytes(matched: RuleMatch, program: ResidualProgram) -> int:
    """Bytes of what is remembered of tokens for one guidance branch."""
    tokens, last = matched.rule.tokens, clustered(matched, program)
    if isinstance(tokens, OnePerCluster) and last is not None:
        shape = last.after.meta["shape"]
        count, channels = math.prod(shape[1:-1]), shape[-1]
        return int(shape[0]) * (8 * count + 4 * min(tokens.clusters, count) * channels)
    ends = [matched.skipped.ends[i].meta["shape"] for i in token_branches(matched, program)]
    return sum(4 * shape[0] * shape[1] for shape in ends)  # ages


__all__ = [
    "Clusters", "TokenRegion", "TokenState", "clustered", "k_means", "one_of_each", "state_bytes",
    "token_branches",
]  # fmt: skip
