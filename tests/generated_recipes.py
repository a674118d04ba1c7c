"""Hypothesis strategy for small transformers of other shapes than ``generated_models``: streams that
are joined and split midway, two towers with a bridge, one packed sequence, merged cross-attention.

    case = build(recipe)                       # recipe drawn from `recipes()`
    args = case.inputs(seed=0)
    case.model(*args)
    case.expected                              # the branches of each stream, written down by hand
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from generated_blocks import Attention, mlp
from hypothesis import strategies as st
from torch import Tensor, nn

from synccache.policies.dsl import ADD, ATTENTION, MLP, Kind

VIDEO, TEXT, AUDIO = 6, 3, 4  # tokens
CHANNELS = 5


class Shape(enum.Enum):
    """How streams run."""

    LINE = "one stream"
    TOWERS = "video and audio blocks of their own, a bridge both ways before each pair"
    PACKED = "text, audio and video in one sequence"
    JOINED = "text and video apart, then joined"
    PARTED = "text and video apart, joined, and apart again"


class Write(enum.Enum):
    """How a branch is added."""

    PLUS = "x + y"
    SWAPPED = "y + x"
    IN_PLACE = "x += y"
    ADDCMUL = "addcmul(x, gate, y)"
    ALIAS = "a view of x is added to in place"
    SLICE = "what audio branches add is written to a part of x"


PARTS = ("self", "text", "audio", "merged", "map", "mlp")


@dataclass(frozen=True)
class Recipe:
    """What a model looks like."""

    shape: Shape
    parts: tuple[tuple[str, ...], ...]  # of each block of a LINE
    blocks: int
    write: Write
    returns: str  # "tensors" or "dict"
    gated: bool
    lengths: bool  # text is cut to a length that is read from a tensor
    seed: int = 0


class Merged(nn.Module):
    """``o(text + audio * scale)``: two attentions with one query, summed before the projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.text, self.audio = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, text: Tensor, audio: Tensor) -> Tensor:
        q = self.q(x)
        heard = F.scaled_dot_product_attention(q, *self.audio(audio).chunk(2, dim=-1))
        read = F.scaled_dot_product_attention(q, *self.text(text).chunk(2, dim=-1))
        return self.out(read + heard * 0.7)


class Part(nn.Module):
    """One branch: gate(t) * f(norm(x), ...)."""

    def __init__(self, kind: str, width: int, gated: bool) -> None:
        super().__init__()
        self.norm, self.gate = nn.LayerNorm(width), nn.Linear(1, width) if gated else None
        bodies = {"mlp": mlp, "merged": Merged, "map": lambda w: nn.Linear(w, w)}
        self.body = bodies.get(kind, lambda w: Attention(w, w))(width)
        self.kind = kind

    def forward(self, x: Tensor, time: Tensor, *others: Tensor) -> Tensor:
        if self.kind == "map":
            out = self.body(others[0]).mean(dim=1, keepdim=True).expand_as(x)
        else:
            out = self.body(self.norm(x), *others)
        return out if self.gate is None else out * self.gate(time)[:, None]


def added(x: Tensor, y: Tensor, write: Write) -> Tensor:
    match write:
        case Write.SWAPPED:
            return y + x
        case Write.IN_PLACE:
            x += y
        case Write.ADDCMUL:
            return torch.addcmul(x, torch.full_like(y, 0.5), y)
        case Write.ALIAS:
            x.view(-1, x.shape[-1]).add_(y.reshape(-1, y.shape[-1]))
        case Write.SLICE:
            x[:, 1:] = x[:, 1:] + y[:, 1:]
        case _:
            return x + y
    return x


Step = tuple[str, str, tuple[str, ...]]  # part, stream, what else it is given


class Block(nn.Module):
    """Runs its steps on named tensors and gives the streams back."""

    def __init__(self, recipe: Recipe, width: int, steps: tuple[Step, ...]) -> None:
        super().__init__()
        self.recipe, self.steps = recipe, steps
        self.streams = tuple(dict.fromkeys(stream for _, stream, _ in steps))
        self.parts = nn.ModuleList([Part(kind, width, recipe.gated) for kind, _, _ in steps])

    def forward(self, time: Tensor, **given: Tensor) -> dict[str, Tensor] | tuple[Tensor, ...]:
        for part, (kind, stream, others) in zip(self.parts, self.steps, strict=True):
            y = part(given[stream], time, *(given[o] for o in others))
            whole = self.recipe.write is Write.SLICE and kind != "audio"
            given[stream] = added(given[stream], y, Write.PLUS if whole else self.recipe.write)
        if self.recipe.returns == "dict":
            return {name: given[name] for name in self.streams}
        return tuple(given[name] for name in self.streams)


class Transformer(nn.Module):
    def __init__(self, recipe: Recipe, width: int = 8) -> None:
        super().__init__()
        self.recipe = recipe
        self.embed, self.embed_text, self.embed_audio = (nn.Linear(CHANNELS, width) for _ in "xta")
        self.blocks = nn.ModuleList([Block(recipe, width, s) for s in steps_of(recipe)])
        self.late = nn.ModuleList([Block(recipe, width, s) for s in late_steps_of(recipe)])
        self.last = nn.ModuleList([Block(recipe, width, s) for s in last_steps_of(recipe)])
        self.head = nn.Linear(width, CHANNELS)

    def forward(
        self, latents: Tensor, timestep: Tensor, audio: Tensor, text: Tensor, lengths: Tensor
    ) -> Tensor:
        time = timestep.reshape(-1, 1) / 1000
        if self.recipe.lengths:
            text = text[:, : int(lengths.max())]
        given = {
            "video": self.embed(latents),
            "text": self.embed_text(text),
            "audio": self.embed_audio(audio),
        }
        shape, cut = self.recipe.shape, given["text"].shape[1]
        if shape is Shape.PACKED:
            given["video"] = torch.cat([given["text"], given["audio"], given["video"]], dim=1)
        given = self.run(self.blocks, time, given)
        if shape in (Shape.JOINED, Shape.PARTED):
            joined = self.run(
                self.late, time, {"video": torch.cat([given["text"], given["video"]], dim=1)}
            )["video"]
            given["text"], given["video"] = joined[:, :cut], joined[:, cut:]
            if shape is Shape.PARTED:
                given = {k: v.clone() for k, v in given.items()}
        given = self.run(self.last, time, given)
        return self.head(given["video"][:, -VIDEO:])

    def run(
        self, blocks: nn.ModuleList, time: Tensor, given: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        for block in blocks:
            wanted = {n for _, stream, others in block.steps for n in (stream, *others)}
            out = block(time, **{n: given[n] for n in sorted(wanted)})
            named = out if isinstance(out, dict) else dict(zip(block.streams, out, strict=True))
            given = {**given, **named}
        return given


# ------------------------------------------------------------------ what is in a block

_GIVEN = {"text": ("text",), "audio": ("audio",), "merged": ("text", "audio"), "map": ("audio",)}
_PAIR: tuple[Step, ...] = (
    ("cross", "video", ("text",)), ("cross", "text", ("video",)), ("mlp", "video", ()), ("mlp", "text", ()),
)  # fmt: skip
_LINE: tuple[Step, ...] = (("self", "video", ()), ("mlp", "video", ()))


def steps_of(recipe: Recipe) -> list[tuple[Step, ...]]:
    match recipe.shape:
        case Shape.LINE:
            return [tuple((p, "video", _GIVEN.get(p, ())) for p in parts) for parts in recipe.parts]
        case Shape.PACKED:
            return [_LINE] * recipe.blocks
        case Shape.TOWERS:
            bridge: tuple[Step, ...] = (
                ("cross", "video", ("audio",)), ("cross", "audio", ("video",)),
            )  # fmt: skip
            video = (*_LINE, ("text", "video", ("text",)))
            sound: tuple[Step, ...] = (("self", "audio", ()), ("mlp", "audio", ()))
            return [s for _ in range(recipe.blocks) for s in (bridge, video, sound)]
    return [_PAIR] * recipe.blocks


def late_steps_of(recipe: Recipe) -> list[tuple[Step, ...]]:
    return [_LINE] * 2 if recipe.shape in (Shape.JOINED, Shape.PARTED) else []


def last_steps_of(recipe: Recipe) -> list[tuple[Step, ...]]:
    return [_PAIR] * 2 if recipe.shape is Shape.PARTED else []


# ------------------------------------------------------------- what is to be found in it


@dataclass(frozen=True, order=True)
class Found:
    """One branch: its kind, the conditions and the number of other streams that it reads."""

    kind: Kind
    reads: frozenset[str]
    others: int


def expected(recipe: Recipe) -> list[list[Found]]:
    """The branches of each stream; a stream nobody needs any more has none."""
    gate = frozenset({"timestep"} if recipe.gated else ())
    text, none = frozenset({"text"}), frozenset[str]()

    def plain(kind: Kind, reads: frozenset[str] = none, others: int = 0) -> Found:
        return Found(kind, reads | gate, others)

    line = [plain(ATTENTION), plain(MLP)]
    match recipe.shape:
        case Shape.LINE:
            kinds = {"map": ADD, "mlp": MLP}
            return [
                [
                    plain(kinds.get(p, ATTENTION), frozenset(_GIVEN.get(p, ())))
                    for parts in recipe.parts
                    for p in parts
                ]
            ]
        case Shape.PACKED:
            return [line * recipe.blocks]
        case Shape.TOWERS:
            looks = plain(ATTENTION, frozenset({"audio"}), 1)
            video = [looks, *line, plain(ATTENTION, text)]
            sound = [plain(ATTENTION, others=1), *line]
            # nobody reads what the last pair's audio block and bridge make of the audio stream
            return [video * recipe.blocks, sound * (recipe.blocks - 1)]
    video = [plain(ATTENTION, text, 1), plain(MLP)]
    words = [plain(ATTENTION, others=1), plain(MLP)]
    first = [video * recipe.blocks, words * recipe.blocks, line * 2]
    if recipe.shape is Shape.JOINED:
        return first
    # each half of the joined stream begins with all that went into it
    mixed = text | gate
    video = [Found(ATTENTION, mixed, 1), plain(MLP)]
    return [*first, video * 2, [Found(ATTENTION, mixed, 1), plain(MLP)]]


# ---------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class RecipeCase:
    recipe: Recipe
    model: Transformer

    @property
    def expected(self) -> list[list[Found]]:
        return expected(self.recipe)

    def inputs(self, seed: int, timestep: float = 900.0) -> tuple[Tensor, ...]:
        """Latents, timestep, audio, text, lengths; odd seeds have shorter texts."""
        return (
            _normal(seed, 1, VIDEO, CHANNELS),
            torch.tensor([timestep]),
            _normal(seed + 1, 1, AUDIO, CHANNELS),
            _normal(seed + 2, 1, TEXT, CHANNELS),
            torch.tensor([TEXT - seed % 2, 1]),
        )


def build(recipe: Recipe) -> RecipeCase:
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = Transformer(recipe).eval().requires_grad_(False)
    return RecipeCase(recipe, model)


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _parts() -> st.SearchStrategy[tuple[tuple[str, ...], ...]]:
    block = st.permutations(PARTS).flatmap(
        lambda order: st.integers(2, 5).map(lambda n: tuple(order[:n]))
    )
    return st.lists(block, min_size=2, max_size=3).map(tuple)


def recipes() -> st.SearchStrategy[Recipe]:
    """Recipes; every field independent of the others."""
    return st.builds(
        Recipe,
        shape=st.sampled_from(Shape),
        parts=_parts(),
        blocks=st.integers(2, 3),
        write=st.sampled_from(Write),
        returns=st.sampled_from(["tensors", "dict"]),
        gated=st.booleans(),
        lengths=st.booleans(),
        seed=st.integers(0, 99),
    )
