"""What generated models are made of: their specification and one block in its coding styles."""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 3
FRAMES = 2
REFERENCE_TOKENS = 2


class Audio(enum.Enum):
    """How audio enters."""

    NONE = "none"
    INJECTORS = "cross-attention modules after some blocks"
    ADDS = "a projected map added before some blocks"
    OWN = "an own cross-attention branch in every block"
    MERGED = "added to the text cross-attention's result"
    STREAM = "a second stream that exchanges with the video stream"


@dataclass(frozen=True)
class Spec:
    """What a generated model looks like; every field is one thing that released code does."""

    seed: int = 0
    width: int = 8
    blocks: int = 3
    tokens_per_frame: int = 3
    batch: int = 1
    audio: Audio = Audio.INJECTORS
    audio_blocks: frozenset[int] = frozenset(
        {0}
    )  # injected after (INJECTORS) or before (ADDS) them
    joint_text: bool = False  # text is a stream of its own, attended jointly
    gated: bool = True  # gate(t) * out, with modulated input
    in_place: bool = False  # x += f(x)
    cast: bool = False  # (x.float() + y).type_as(x)
    slice_write: bool = False  # h[:, :n] = h[:, :n] + a
    tuple_blocks: bool = False
    reference: bool = False  # tokens behind the video's, cut off at the end
    text_list: bool = False  # one tensor a sample, of different lengths
    refiner: bool = False  # text = text + mlp(text) before the blocks
    early_exit: bool = False  # the head also reads the stream after block 0
    both_outputs: bool = False  # (video, audio) of a two-stream model
    guidance: float | None = None  # an optional keyword
    half: bool = False  # weights and streams in bfloat16


class Attention(nn.Module):
    def __init__(self, width: int, other: int, heads: int = 2) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.kv = nn.Linear(other, 2 * width)
        self.heads = heads

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        batch, tokens, width = x.shape
        key, value = self.kv(x if context is None else context).chunk(2, dim=-1)
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.q(x), key, value)
        )
        found = F.scaled_dot_product_attention(q, k, v)
        return self.out(found.transpose(1, 2).reshape(batch, tokens, width))


class JointAttention(nn.Module):
    """Two streams attend over their concatenation; each gets its own rows back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)
        self.out_first, self.out_second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        joined = torch.cat([self.first(x), self.second(y)], dim=1)
        q, k, v = joined.chunk(3, dim=-1)
        found = F.scaled_dot_product_attention(q, k, v)
        left, right = found.split([x.shape[1], y.shape[1]], dim=1)
        return self.out_first(left), self.out_second(right)


class Modulated(nn.Module):
    """gate(t) * f(norm(x) * (1 + scale(t)) + shift(t)), or f(norm(x)) without time."""

    def __init__(self, width: int, gated: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.time = nn.Linear(width, 3 * width) if gated else None

    def enter(self, x: Tensor, time: Tensor) -> Tensor:
        if self.time is None:
            return self.norm(x)
        shift, scale, _ = self.time(time)[:, None].chunk(3, dim=-1)
        return self.norm(x) * (1 + scale) + shift

    def leave(self, x: Tensor, time: Tensor) -> Tensor:
        return x if self.time is None else self.time(time)[:, None].chunk(3, dim=-1)[2] * x


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class Block(nn.Module):
    """Each method is the body of one branch: what is added, from the stream before it."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        w = spec.width
        self.spec = spec
        names = ["self", "text", "audio", "mlp", "other_self", "other_cross", "other_mlp"]
        self.around = nn.ModuleDict({name: Modulated(w, spec.gated) for name in names})
        self.joint = JointAttention(w)
        self.attend, self.text, self.audio = (Attention(w, w) for _ in range(3))
        self.other_attend, self.other_cross = Attention(w, w), Attention(w, w)
        self.mlp, self.other_mlp = mlp(w), mlp(w)

    def body(self, name: str, x: Tensor, time: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        around = self.around[name]
        return around.leave(f(around.enter(x, time)), time)

    def own(self, x: Tensor, time: Tensor) -> Tensor:
        return self.body("self", x, time, self.attend)

    def jointly(self, x: Tensor, y: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.around["self"], self.around["other_self"]
        left, right = self.joint(first.enter(x, time), second.enter(y, time))
        return first.leave(left, time), second.leave(right, time)

    def cross(self, name: str, x: Tensor, time: Tensor, *contexts: Tensor) -> Tensor:
        return self.body(name, x, time, lambda h: self.look(name, h, *contexts))

    def look(self, name: str, h: Tensor, *contexts: Tensor) -> Tensor:
        """Cross-attention to one context, or the sum of those to two."""
        ways = {"text": (self.text, self.audio), "audio": (self.audio,)}
        ways["other_cross"] = (self.other_cross,)
        found = [way(h, c) for way, c in zip(ways[name], contexts, strict=False)]
        return found[0] + found[1] if len(found) > 1 else found[0]

    def forward(self, x: Tensor, time: Tensor, text: Tensor, audio: Tensor) -> Any:
        spec, add = self.spec, ADDERS[self.spec.in_place, self.spec.cast]
        two = spec.audio is Audio.STREAM
        if spec.joint_text:
            left, right = self.jointly(x, text, time)
            x, text = add(x, left), add(text, right)
        else:
            x = add(x, self.own(x, time))
        if two:
            audio = add(audio, self.body("other_self", audio, time, self.other_attend))
            x = add(x, self.cross("audio", x, time, audio))
            audio = add(audio, self.cross("other_cross", audio, time, x))
        if not spec.joint_text:
            contexts = (text, audio) if spec.audio is Audio.MERGED else (text,)
            x = add(x, self.cross("text", x, time, *contexts))
        if spec.audio is Audio.OWN:
            x = add(x, self.cross("audio", x, time, audio))
        x = add(x, self.body("mlp", x, time, self.mlp))
        if spec.joint_text:
            text = add(text, self.body("other_mlp", text, time, self.other_mlp))
        if two:
            audio = add(audio, self.body("other_mlp", audio, time, self.other_mlp))
        if spec.joint_text or two:
            return x, text, audio
        return (x, None) if spec.tuple_blocks else x


def _in_place(x: Tensor, y: Tensor) -> Tensor:
    x += y
    return x


ADDERS: dict[tuple[bool, bool], Callable[[Tensor, Tensor], Tensor]] = {
    (False, False): lambda x, y: x + y,
    (True, False): _in_place,
    (False, True): lambda x, y: (x.float() + y).type_as(x),
    (True, True): lambda x, y: (x.float() + y).type_as(x),
}
