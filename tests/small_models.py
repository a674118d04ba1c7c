"""A small audio-driven transformer, quick to record: for tests of everything around the graph."""

import torch
from torch import Tensor, nn
from torch.nn import functional

TOKENS, WIDTH, BLOCKS = 12, 16, 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attend = nn.Linear(WIDTH, WIDTH * 3)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        query, key, value = self.attend(self.norm(hidden) + time).chunk(3, dim=-1)
        attended = functional.scaled_dot_product_attention(query, key, value)
        hidden = hidden + time * attended
        return hidden + self.mlp(self.norm(hidden))


class Injector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.pair = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH * 2)

    def forward(self, hidden: Tensor, audio: Tensor) -> Tensor:
        key, value = self.pair(audio).chunk(2, dim=-1)
        return functional.scaled_dot_product_attention(self.query(hidden), key, value)


class Talking(nn.Module):
    """forward(latents [1, TOKENS, 4], timestep [1], audio [1, 5, 6]); audio after every block."""

    def __init__(self, blocks: int = BLOCKS) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.time, self.listen = nn.Linear(1, WIDTH), nn.Linear(6, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.injectors = nn.ModuleList(Injector() for _ in range(blocks))

    def forward(self, latents: Tensor, timestep: Tensor, audio: Tensor) -> Tensor:
        time = self.time(timestep[:, None, None] / 1000)
        heard = self.listen(audio)
        hidden = self.embed(latents)
        for block, injector in zip(self.blocks, self.injectors, strict=True):
            hidden = block(hidden, time)
            hidden = hidden + injector(hidden, heard)
        return self.head(hidden)


def talking(blocks: int = BLOCKS) -> Talking:
    """The model with seeded weights, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Talking(blocks).eval().requires_grad_(False)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def voices() -> list[Tensor]:
    """Audio of the conditional and of the unconditional branch."""
    speech = normal(77, 1, 5, 6)
    return [speech, torch.zeros_like(speech)]


def denoise(
    model: nn.Module, steps: int = 6, *, seed: int = 0, audio: list[Tensor] | None = None
) -> Tensor:
    """Euler steps from timestep 1000 down with two calls a step."""
    audio = voices() if audio is None else audio
    state = normal(seed, 1, TOKENS, 4)
    for step in range(steps):
        timestep = torch.tensor([1000.0 * (1 - step / steps)])
        velocities = [model(state, timestep, voice) for voice in audio]
        state = state - (2.0 * velocities[0] - velocities[-1]) / steps
    return state
