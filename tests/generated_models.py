"""Hypothesis strategy for small seeded audio-driven transformers, written in many coding styles.

    case = build(spec)                                  # spec drawn from `specs()`
    args, kwargs = case.new_inputs(seed=0, timestep=900.0)
    case.model(*args, **kwargs)                         # an ordinary forward
    hand = case.model.by_hand(*args, **kwargs)          # the same, branch by branch, without a graph

`by_hand` is written apart from `forward` and gives the residual program that is to be found: which
stream each branch adds to, in which block, what it reads and of what kind it is.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from generated_blocks import (
    ADDERS,
    CHANNELS,
    FRAMES,
    REFERENCE_TOKENS,
    Attention,
    Audio,
    Block,
    Spec,
    mlp,
)
from generated_specs import specs as specs
from torch import Tensor, nn

from synccache.policies.dsl import ADD, ATTENTION, MLP, Kind


def _as_it_is(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Branch:
    """One residual branch: streams[stream] = apply(before, gate(module(*inputs))).

    inputs: (stream, version) pairs, where version counts the branches of that stream before.
    gate: by a factor of the timestep alone; enter: what the stream is before the first projection.
    """

    stream: str
    block: int
    reads: frozenset[str]
    kind: Kind
    inputs: tuple[tuple[str, int], ...]
    module: Callable[..., Tensor]
    apply: Callable[[Tensor, Tensor], Tensor]
    gate: Callable[[Tensor], Tensor] = _as_it_is
    enter: Callable[[Tensor], Tensor] = _as_it_is

    def add(self, *inputs: Tensor) -> Tensor:
        """What the branch adds to its stream."""
        return self.gate(self.module(*inputs))


@dataclass(frozen=True)
class ByHand:
    """A forward taken apart: the streams' roots, the branches in order, and the rest."""

    roots: dict[str, Tensor]
    branches: tuple[Branch, ...]
    outputs: tuple[tuple[str, int], ...]
    finish: Callable[..., Any]
    latent: Tensor | None = None  # the sample, as it was passed
    time: Tensor | None = None  # the embedded timestep that blocks read

    def program(self) -> dict[str, list[tuple[int, frozenset[str], Kind]]]:
        """Stream -> its branches as (block, reads, kind)."""
        found: dict[str, list[tuple[int, frozenset[str], Kind]]] = {}
        for branch in self.branches:
            found.setdefault(branch.stream, []).append((branch.block, branch.reads, branch.kind))
        return found


class Transformer(nn.Module):
    def __init__(self, spec: Spec) -> None:
        super().__init__()
        w = spec.width
        self.spec = spec
        self.embed, self.embed_text, self.embed_audio = (nn.Linear(CHANNELS, w) for _ in range(3))
        self.embed_reference = nn.Linear(CHANNELS, w)
        self.positions = nn.Parameter(torch.randn(64, w) * 0.3)
        self.embed_time = nn.Sequential(nn.Linear(1, w), nn.SiLU(), nn.Linear(w, w))
        self.refine = mlp(w)
        self.blocks = nn.ModuleList([Block(spec) for _ in range(spec.blocks)])
        self.injectors = nn.ModuleDict({str(i): Attention(w, w) for i in sorted(spec.audio_blocks)})
        self.maps = nn.ModuleDict({str(i): nn.Linear(w, w) for i in sorted(spec.audio_blocks)})
        self.norm, self.head = nn.LayerNorm(w), nn.Linear(w * (1 + spec.early_exit), CHANNELS)
        self.head_audio = nn.Linear(w, CHANNELS)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        audio: Tensor,
        text: Any,
        reference: Tensor | None = None,
        guidance: float | None = None,
    ) -> Any:
        x, time, text, audio = self.prepare(latents, timestep, audio, text, reference, guidance)
        tokens = latents[0, 0].numel()
        early = x
        for index, block in enumerate(self.blocks):
            if self.spec.audio is Audio.ADDS and str(index) in self.maps:
                x = x + self.spread(self.maps[str(index)](audio), x)
            found = block(x, time, text, audio)
            if self.spec.joint_text or self.spec.audio is Audio.STREAM:
                x, text, audio = found
            else:
                x = found[0] if self.spec.tuple_blocks else found
            if self.spec.audio is Audio.INJECTORS and str(index) in self.injectors:
                x = self.inject(index, x, audio, tokens)
            if index == 0 and self.spec.early_exit:
                early = x.clone()
        return self.finish(latents, (x, early) if self.spec.early_exit else (x,), audio)

    def prepare(
        self,
        latents: Tensor,
        timestep: Tensor,
        audio: Tensor,
        text: Any,
        reference: Tensor | None,
        guidance: float | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if isinstance(text, list):
            longest = max(len(t) for t in text)
            text = torch.stack([F.pad(t, (0, 0, 0, longest - len(t))) for t in text])
        text, audio = self.embed_text(text), self.embed_audio(audio)
        if self.spec.refiner:
            text = text + self.refine(text)
        time = self.embed_time((timestep / 1000).to(latents.dtype).reshape(-1, 1))
        time = time.expand(latents.shape[0], -1)
        if guidance is not None:
            time = time * (1 + guidance)
        x = self.embed(latents.flatten(2).transpose(1, 2))
        x = x + self.positions[: x.shape[1]]
        if reference is not None:
            x = torch.cat([x, self.embed_reference(reference)], dim=1)
        if not self.spec.gated:
            x = x + time[:, None]
        return x, time, text, audio

    def spread(self, audio: Tensor, x: Tensor) -> Tensor:
        """One audio vector a frame, repeated over its tokens; nothing on reference tokens."""
        shape = (-1, FRAMES, self.spec.tokens_per_frame, self.spec.width)
        wide = audio[:, :FRAMES, None].expand(shape).flatten(1, 2)
        return F.pad(wide, (0, 0, 0, x.shape[1] - wide.shape[1]))

    def injection(self, index: int, x: Tensor, audio: Tensor, tokens: int) -> Tensor:
        """Every frame looks at its own audio vector."""
        frames = x[:, :tokens].reshape(-1, self.spec.tokens_per_frame, self.spec.width)
        heard = audio[:, :FRAMES].reshape(-1, 1, self.spec.width)
        return self.injectors[str(index)](self.norm(frames), heard).reshape(
            -1, tokens, self.spec.width
        )

    def inject(self, index: int, x: Tensor, audio: Tensor, tokens: int) -> Tensor:
        found = self.injection(index, x, audio, tokens)
        if self.spec.slice_write:
            x[:, :tokens] = x[:, :tokens] + found
            return x
        return x + F.pad(found, (0, 0, 0, x.shape[1] - tokens))

    def finish(self, latents: Tensor, streams: tuple[Tensor, ...], audio: Tensor) -> Any:
        tokens = latents[0, 0].numel()
        found = self.head(torch.cat([self.norm(x) for x in streams], dim=-1))[:, :tokens]
        video = found.transpose(1, 2).reshape(latents.shape)
        return (video, self.head_audio(audio)) if self.spec.both_outputs else video

    def by_hand(
        self,
        latents: Tensor,
        timestep: Tensor,
        audio: Tensor,
        text: Any,
        reference: Tensor | None = None,
        guidance: float | None = None,
    ) -> ByHand:
        x, time, text, audio = self.prepare(latents, timestep, audio, text, reference, guidance)
        return _Taking(self, latents, x, time, text, audio).apart(reference is not None)


@dataclass
class _Taking:
    """Takes one forward apart; a branch's number in its stream is the version it reads."""

    model: Transformer
    latents: Tensor
    x: Tensor
    time: Tensor
    text: Tensor
    audio: Tensor
    branches: list[Branch] = field(default_factory=list)

    def apart(self, with_reference: bool) -> ByHand:
        spec = self.model.spec
        gate = frozenset({"timestep"}) if spec.gated else frozenset()
        root = frozenset({"reference"} if with_reference else set())
        root |= frozenset() if spec.gated else frozenset({"timestep"})
        roots = {"video": self.x}
        if spec.joint_text:
            roots["text"] = self.text
        if spec.audio is Audio.STREAM:
            roots["audio"] = self.audio if spec.both_outputs else self.prepared_audio()
        early = 0
        for index, block in enumerate(self.model.blocks):
            if spec.audio is Audio.ADDS and index in spec.audio_blocks:
                spread = self.model.spread(self.model.maps[str(index)](self.audio), self.x)
                self.add(
                    "video", max(index - 1, 0), {"audio"}, ADD, (), lambda s=spread: s, plain=True
                )
            self.take_block(index, block, gate, root)
            if spec.audio is Audio.INJECTORS and index in spec.audio_blocks:
                self.take_injection(index)
            if index == 0:
                early = self.version("video")
        outputs = [("video", self.version("video"))]
        if spec.early_exit:
            outputs.append(("video", early))
        if spec.both_outputs:
            outputs.append(("audio", self.version("audio")))
        live = _live(self.branches, outputs)
        return ByHand(roots, live, tuple(outputs), self.finish, self.latents, self.time)

    def prepared_audio(self) -> Tensor:
        block = self.model.blocks[0]
        found = block.body("other_self", self.audio, self.time, block.other_attend)
        return ADDERS[False, self.model.spec.cast](self.audio, found)

    def finish(self, *streams: Tensor) -> Any:
        *videos, last = streams
        if self.model.spec.both_outputs:
            return self.model.finish(self.latents, tuple(videos), last)
        return self.model.finish(self.latents, streams, self.audio)

    def version(self, stream: str) -> int:
        return sum(branch.stream == stream for branch in self.branches)

    def add(
        self,
        stream: str,
        block: int,
        reads: Any,
        kind: Kind,
        others: Any,
        module: Any,
        around: str = "",
        plain: bool = False,
    ) -> None:
        """A branch; ``around`` names the norm, modulation and gate of its block that it runs in."""
        own = () if kind is ADD else ((stream, self.version(stream)),)
        apply = ADDERS[False, self.model.spec.cast and not plain]
        if not around:
            branch = Branch(stream, block, frozenset(reads), kind, own + others, module, apply)
            self.branches.append(branch)
            return
        modulated, time = self.model.blocks[block].around[around], self.time

        def entered(x: Tensor, *rest: Tensor) -> Tensor:
            return module(modulated.enter(x, time), *rest)

        self.branches.append(
            Branch(
                stream,
                block,
                frozenset(reads),
                kind,
                own + others,
                entered,
                apply,
                gate=lambda y: modulated.leave(y, time),
                enter=lambda x: modulated.enter(x, time),
            )
        )

    def take_block(self, k: int, block: Block, gate: frozenset[str], root: frozenset[str]) -> None:
        spec, time, text, audio = self.model.spec, self.time, self.text, self.audio
        first, second = block.around["self"], block.around["other_self"]
        if spec.joint_text:
            before = (("video", self.version("video")), ("text", self.version("text")))
            self.add("video", k, gate | {"text"}, ATTENTION, before[1:],
                     lambda x, y: block.joint(x, second.enter(y, time))[0], "self")  # fmt: skip
            self.add("text", k, gate | root, ATTENTION, before[:1],
                     lambda y, x: block.joint(first.enter(x, time), y)[1], "other_self")  # fmt: skip
        else:
            self.add("video", k, gate, ATTENTION, (), block.attend, "self")
        if spec.audio is Audio.STREAM:
            # what the latents do not reach yet prepares a stream that is not an output itself
            if k > 0 or spec.both_outputs:
                self.add("audio", k, gate, ATTENTION, (), block.other_attend, "other_self")
            self.add("video", k, gate | {"audio"}, ATTENTION, (("audio", self.version("audio")),),
                     block.audio, "audio")  # fmt: skip
            self.add("audio", k, gate | root, ATTENTION, (("video", self.version("video")),),
                     block.other_cross, "other_cross")  # fmt: skip
        if not spec.joint_text:
            contexts = (text, audio) if spec.audio is Audio.MERGED else (text,)
            reads = {"text", "audio"} if spec.audio is Audio.MERGED else {"text"}
            self.add("video", k, gate | reads, ATTENTION, (),
                     lambda x: block.look("text", x, *contexts), "text")  # fmt: skip
        if spec.audio is Audio.OWN:
            self.add("video", k, gate | {"audio"}, ATTENTION, (),
                     lambda x: block.audio(x, audio), "audio")  # fmt: skip
        self.add("video", k, gate, MLP, (), block.mlp, "mlp")
        for other in ("text",) * spec.joint_text + ("audio",) * (spec.audio is Audio.STREAM):
            self.add(other, k, gate, MLP, (), block.other_mlp, "other_mlp")

    def take_injection(self, index: int) -> None:
        tokens = self.latents[0, 0].numel()

        def padded(x: Tensor) -> Tensor:
            found = self.model.injection(index, x, self.audio, tokens)
            return F.pad(found, (0, 0, 0, x.shape[1] - tokens))

        self.add("video", index, {"audio"}, ATTENTION, (), padded, plain=True)


def _live(branches: list[Branch], outputs: list[tuple[str, int]]) -> tuple[Branch, ...]:
    """Without the branches that no output needs, such as the last block's text branches."""
    needed = set(outputs)
    kept: list[Branch] = []
    counts = {b.stream: sum(c.stream == b.stream for c in branches) for b in branches}
    for branch in reversed(branches):
        counts[branch.stream] -= 1
        after = (branch.stream, counts[branch.stream] + 1)
        if after in needed:
            needed |= {*branch.inputs, (branch.stream, counts[branch.stream])}
            kept.append(branch)
    return tuple(reversed(kept))


@dataclass(frozen=True)
class Generated:
    """A model in evaluation mode and its inputs; a guidance branch keeps its condition tensors."""

    spec: Spec
    model: Transformer
    prompts: tuple[dict[str, Any], ...]

    def new_inputs(
        self, seed: int, timestep: float, guidance_branch: int = 0
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) of one call; latents of neighbouring seeds are alike, as on a trajectory."""
        spec = self.spec
        shape = (spec.batch, CHANNELS, FRAMES, spec.tokens_per_frame)
        latents = _normal(spec.seed, *shape) + 0.3 * _normal(1000 + seed, *shape)
        kwargs = dict(self.prompts[guidance_branch])
        latents, time = latents.to(self.model.embed.weight.dtype), torch.tensor([timestep])
        return (latents, time, kwargs.pop("audio"), kwargs.pop("text")), kwargs


def build(spec: Spec) -> Generated:
    """The model of this specification, with two prompts: with and without audio."""
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed)
        model = Transformer(spec).eval().requires_grad_(False)
    dtype = torch.bfloat16 if spec.half else torch.float32
    return Generated(spec, model.to(dtype), tuple(_prompt(spec, k, dtype) for k in range(2)))


def _prompt(spec: Spec, branch: int, dtype: torch.dtype) -> dict[str, Any]:
    seed, batch = 10 * spec.seed + branch, spec.batch
    lengths = [3 + i for i in range(batch)]
    texts = [_normal(seed + i, length, CHANNELS).to(dtype) for i, length in enumerate(lengths)]
    prompt: dict[str, Any] = {
        "audio": _normal(seed + 5, batch, FRAMES + 1, CHANNELS).to(dtype) * (1 - branch),
        "text": texts if spec.text_list else torch.stack([t[:3] for t in texts]),
    }
    if spec.reference:
        prompt["reference"] = _normal(seed + 6, batch, REFERENCE_TOKENS, CHANNELS).to(dtype)
    if spec.guidance is not None:
        prompt["guidance"] = spec.guidance
    return prompt


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
