"""What a recording does to the garbage collector and to other threads: nothing that is seen."""

import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

import synccache
from synccache.fx.ages import ages
from synccache.fx.capture import capture

TABLE = torch.arange(8.0)  # a constant that no module owns


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + TABLE


def test_only_what_was_there_before_counts_as_older() -> None:
    with ages() as born_before:
        young = torch.ones(2)
        assert born_before(TABLE)
        assert not born_before(young)


@torch.no_grad()
def test_objects_that_the_caller_froze_stay_frozen_and_count_as_older() -> None:
    model = Shifted().eval()
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        out, captured = capture(model, (torch.ones(1, 8),), {})
        assert gc.get_freeze_count() > 0.9 * frozen  # some die by themselves
        assert next(iter(captured.constants.values())) is TABLE
    finally:
        gc.unfreeze()
    assert torch.equal(out, model(torch.ones(1, 8)))


@torch.no_grad()
def test_recordings_in_several_threads_are_right() -> None:
    models = [Shifted().eval() for _ in range(4)]
    compiled = [synccache.compile(m, "exact") for m in models]
    x = torch.randn(2, 8)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda c: c(x), compiled))

    assert all(torch.equal(m(x), y) for m, y in zip(models, found, strict=True))
    assert gc.get_freeze_count() == 0


def test_a_recording_does_not_import_the_compiler() -> None:
    program = (
        "import sys, torch\n"
        "from synccache.fx.capture import capture\n"
        "capture(torch.nn.Sequential(torch.nn.Linear(2, 2)), (torch.ones(1, 2),), {})\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False)

    assert done.returncode == 0
