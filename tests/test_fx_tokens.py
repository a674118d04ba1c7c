"""Tokens: which are computed on a skipped step, and what becomes of the others."""

from typing import Any

import pytest
import torch
from generated_blocks import Audio, Spec
from generated_models import build
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import difference, same, tensors, timesteps
from small_models import TOKENS, WIDTH, talking
from table_models import build as build_released
from torch import Tensor, nn

import synccache
from synccache import policies
from synccache.errors import MatchError, PolicyError
from synccache.fx.held import Held
from synccache.fx.predict import predict
from synccache.fx.runtime import BranchState, Call, Trajectory
from synccache.fx.skip import Holding
from synccache.fx.tokens import TokenRegion, TokenState, k_means, one_of_each
from synccache.policies.dsl import (
    DISSIMILARITY,
    EACH_BRANCH,
    NORM,
    STALENESS,
    Hold,
    Policy,
    Rule,
    Taylor,
    Tokens,
    blocks,
    branches,
    modules,
    one_per_cluster,
    skips,
    step,
    top_tokens,
)

ROUNDING = 2e-5


def run(compiled: Any, case: Any, steps: int) -> list[tuple[Tensor, ...]]:
    found = []
    for k, timestep in enumerate(timesteps(steps)):
        args, kwargs = case.new_inputs(k, timestep)
        with torch.no_grad():
            found.append(tensors(compiled(*args, **kwargs)))
    return found


def with_tokens(tokens: Tokens, interval: int = 4) -> Policy:
    when = (step >= 1) & (skips < interval - 1)
    return Policy("mine", (Rule(modules(branches), when, Hold(), tokens),))


# ---------------------------------------------------------------------------------- the parts


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), tokens=st.integers(3, 20), clusters=st.integers(1, 6))
def test_every_token_is_in_the_cluster_that_is_nearest(
    seed: int, tokens: int, clusters: int
) -> None:
    points = torch.randn(2, tokens, 4, generator=torch.Generator().manual_seed(seed))

    labels, centroids = k_means(points, clusters, 10, None, seed)

    distances = (points[:, :, None] - centroids[:, None]).abs().sum(-1)
    assert torch.equal(distances.argmin(-1), labels)


def test_clusters_are_the_same_a_few_tokens_at_a_time() -> None:
    points = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(0))
    whole = k_means(points, 5, 10, None, 0)

    labels, centroids = k_means(points, 5, 10, None, 0, chunk=7 * 2 * 4)

    assert torch.equal(whole[0], labels)
    assert torch.allclose(whole[1], centroids)


def test_clusters_start_where_the_last_ones_ended() -> None:
    points = torch.tensor([[[0.0], [1.0], [10.0], [11.0]]])

    labels, centroids = k_means(points, 2, 10, torch.tensor([[[12.0], [-3.0]]]), 0)

    assert labels.tolist() == [[1, 1, 0, 0]]
    assert centroids.flatten().tolist() == [10.5, 0.5]


def test_one_token_of_each_cluster_is_chosen_by_its_key() -> None:
    keys = torch.tensor([[0.1, 0.9, 0.5, 0.7]])

    assert one_of_each(torch.tensor([[0, 0, 1, 1]]), 2, keys).tolist() == [[1, 3]]


def test_moving_what_is_held_moves_forecasts_and_keeps_slopes() -> None:
    held = Held()
    for at, value in ((0, 1.0), (3, 4.0)):
        held.push(at, torch.tensor([value]), 2)
    held.move(torch.tensor([0.5]))

    assert [t.item() for t in held.tensors()] == [1.5, 4.5]


def test_worked_number_of_a_cluster_blend() -> None:
    """Clusters {0, 1} and {2, 3}; fresh tokens 0 -> 2 and 3 -> 4; spread 0.25; slope 0.1, two steps on."""

    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    newest = torch.tensor([1.0, 1.2, 3.0, 3.4]).reshape(1, 4, 1)
    holding = Holding(start=None, copy_start=False, copy_end=False, dtype=torch.float32)
    region = TokenRegion(
        Doubled(), 0, Taylor(1), (holding,), tensors=2, flops=0, visual_flops=0, seconds=0.0
    ).set_tokens(one_per_cluster(2, spread=0.25), aside=False, rule=0, label="mlp")
    state, run = BranchState(), Trajectory(step=7)
    held = state.held[0, 0] = Held()
    held.push(4, newest - 0.1, 2)
    held.push(5, newest, 2)
    state.tokens[0] = TokenState(labels=torch.tensor([[0, 0, 1, 1]]))
    call = Call(run, state, 0, EACH_BRANCH, {})

    stream = torch.tensor([1.0, 9.0, 9.0, 2.0]).reshape(1, 4, 1)
    region._refresh(call, held, (stream,), torch.tensor([[0, 3]]))
    forecast = predict(Taylor(1), held.steps, held.tensors(), 7)

    assert held.tensors()[-1].flatten().tolist() == pytest.approx([2, 1.4, 3.25, 4])
    assert forecast.flatten().tolist() == pytest.approx([2.2, 1.6, 3.45, 4.2])


# -------------------------------------------------------------------------------- whole methods


def test_clusca_does_what_was_published() -> None:
    case = build(Spec(audio=Audio.NONE, blocks=2, tokens_per_frame=6))
    model, clusters, spread, steps = case.model, 3, 0.25, 7
    policy = policies.clusca(3, first=1, clusters=clusters, spread=spread)
    compiled = synccache.compile(model, policy)
    found = run(compiled, case, steps)
    order = [("self", 0), ("text", 1), ("mlp", 2)]

    factors: dict[tuple[int, int], list[Tensor]] = {}  # of each branch f_0 and f_1, as published
    last, labels, centroids = -1, None, None
    for k, timestep in enumerate(timesteps(steps)):
        (latents, t, audio, text), _ = case.new_inputs(k, timestep)
        x, time, text, _ = model.prepare(latents, t, audio, text, None, None)
        computed = k % 3 == 0
        for b, block in enumerate(model.blocks):
            bodies = {"self": block.attend, "text": lambda h: block.text(h, text), "mlp": block.mlp}  # noqa: B023
            for name, place in order:
                around, mine = block.around[name], factors.setdefault((b, place), [])
                if computed:
                    value = bodies[name](around.enter(x, time))
                    slope = [(value - mine[0]) / (k - last)] if mine else []
                    factors[b, place] = [value, *slope]
                    made = value
                else:
                    if name == "mlp":
                        region = 3 * b + place
                        keys = torch.rand(
                            1, x.shape[1],
                            generator=torch.Generator().manual_seed(10_007 * k + 101 * region),
                        )  # fmt: skip
                        chosen = one_of_each(labels, clusters, keys)
                        fresh = bodies[name](around.enter(x[:, chosen[0]], time))
                        mine[0] = mine[0].clone()
                        mine[0][:, chosen[0]] = fresh
                        mine[0] = spread * fresh[:, labels[0]] + (1 - spread) * mine[0]
                    made = mine[0] + (mine[1] * (k - last) if len(mine) > 1 else 0.0)
                x = x + around.leave(made, time)
        if computed:
            labels, centroids = k_means(x, clusters, 10, centroids, 0)
            last = k
        expected = (model.finish(latents, (x,), audio),)
        assert difference([expected], [found[k]]) <= ROUNDING, k

    assert compiled.stats().decisions == {0: "CSSCSSC"}


@pytest.mark.parametrize(
    "tokens", [one_per_cluster(4), top_tokens(ratio=0.3), top_tokens(STALENESS, every=2)], ids=str
)
def test_runs_repeat(tokens: Tokens) -> None:
    case = build(Spec(audio=Audio.OWN))
    compiled = synccache.compile(case.model, with_tokens(tokens))

    assert same(run(compiled, case, 6), run(compiled, case, 6))


@pytest.mark.parametrize(
    "tokens", [top_tokens(NORM, ratio=1.0), top_tokens(DISSIMILARITY, ratio=1.0)]
)
def test_with_all_tokens_mlps_are_computed_and_attention_is_not(tokens: Tokens) -> None:
    case = build(Spec(audio=Audio.NONE))
    when = (step >= 1) & (skips < 3)
    attention = Policy("attention", (Rule(modules(branches.attention), when, Hold()),))

    found = run(synccache.compile(case.model, with_tokens(tokens)), case, 4)

    expected = run(synccache.compile(case.model, attention), case, 4)
    assert difference(expected, found) <= ROUNDING


def test_stale_tokens_are_computed_first_so_that_all_get_their_turn() -> None:
    case = build(Spec(audio=Audio.NONE, tokens_per_frame=5))
    compiled = synccache.compile(case.model, with_tokens(top_tokens(STALENESS, ratio=0.2), 9))
    run(compiled, case, 6)
    (state,) = compiled._trajectories[None].branches[0].tokens.values()

    assert all(
        sorted(age[0].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] for age in state.ages.values()
    )


@pytest.mark.parametrize("method", ["clusca", "toca", "duca"])
def test_what_is_held_stays_within_the_plan(method: str) -> None:
    case = build(Spec(audio=Audio.NONE))
    compiled = synccache.compile(case.model, policies.by_name(method))
    for _ in range(2):
        run(compiled, case, 5)
        assert compiled.stats().bytes_held <= compiled.plan.memory.cache_bytes


@pytest.mark.parametrize("name", ["sd3", "flux", "hunyuan_video", "wan_s2v", "pixart"])
def test_released_models_run_their_mlps_token_by_token(name: str) -> None:
    case = build_released(name)
    policy = policies.clusca(3, first=1, clusters=3)
    compiled = synccache.compile(case.model, policy, conditions=case.conditions)
    found = []
    with torch.no_grad():
        for k in range(3):
            args, kwargs = case.inputs(seed=k, timestep=900.0 - k, branch=0, size=0)
            found.append(tensors(compiled(*args, **kwargs)))

    assert compiled.stats().decisions == {0: "CSS"}
    assert all(t.isfinite().all() for out in found for t in out)
    assert compiled._trajectories[None].branches[0].tokens[0].labels is not None


# ------------------------------------------------------------------------------------ refusals


class Mixing(nn.Module):
    """An MLP that also looks at the mean of all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x - x.mean(dim=1, keepdim=True))


class Placed(Mixing):
    """An MLP that knows each token by its place."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(TOKENS, WIDTH), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + self.places)


@pytest.mark.parametrize(
    ("body", "message"),
    [(Mixing, "is not point-wise"), (Placed, "cannot be run on 4 of 12 tokens")],
)
def test_a_branch_that_cannot_run_on_some_tokens_is_refused(
    body: type[Mixing], message: str
) -> None:
    model = talking()
    for block in model.blocks:
        block.mlp = body().eval()
    compiled = synccache.compile(model, policies.toca())

    with torch.no_grad(), pytest.raises(MatchError, match=message):
        compiled(torch.randn(1, 12, 4), torch.tensor([900.0]), torch.randn(1, 5, 6))


def test_a_rule_without_an_mlp_of_the_clustered_stream_is_refused() -> None:
    case = build(Spec(audio=Audio.NONE))
    rule = Rule(modules(branches.attention), step >= 1, Hold(), one_per_cluster())
    compiled = synccache.compile(case.model, Policy("mine", (rule,)))

    with pytest.raises(MatchError, match="the rule skips no MLP branch in a stream"):
        run(compiled, case, 1)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda: one_per_cluster(0),
            r"one_per_cluster\(clusters=...\) must lie in \[1, 4096\], got 0",
        ),
        (lambda: one_per_cluster(spread=2), r"one_per_cluster\(spread=...\) must lie in \[0, 1\]"),
        (lambda: top_tokens(ratio=0), "computes no token"),
        (lambda: top_tokens("random"), "must be a score"),  # type: ignore[arg-type]
        (
            lambda: Rule(blocks[1:], step >= 1, Hold(), top_tokens()),
            "what a rule with tokens= skips",
        ),
        (lambda: Rule(modules(branches), step >= 1, Hold(), 3), "must be a tokens"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_choice_is_refused_when_it_is_built(write: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        write()
