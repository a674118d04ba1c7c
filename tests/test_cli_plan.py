"""`synccache plan`: printed for people, JSON for machines, one clear line where it is refused."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from synccache import Plan
from synccache.cli import app


def plan(*options: str) -> Result:
    return CliRunner().invoke(app, ["plan", *options])


def test_a_14b_model_is_planned_under_a_budget_without_weights() -> None:
    """8 seconds of one core; 33 GB of weights and 2 GB of latents take none of this machine's."""
    size = ["--frames", "80", "--height", "480", "--width", "832"]
    result = plan("wan2.2-s2v-14b", "--mem-budget", "80GB", *size, "--json")

    assert result.exit_code == 0, result.output
    found = Plan.from_json(result.stdout)
    assert found.memory.total_bytes <= found.budget_bytes == 80 * 10**9
    assert found.memory.weights_bytes == pytest.approx(2 * 16.3e9, rel=0.01)
    hidden = (20 + 1) * 30 * 52 * 5120 * 2  # latent frames and the reference, patches, width, bf16
    assert {region.held_bytes for region in found.regions} == {hidden}
    assert len(found.regions) == 11
    assert found.live_total == 12
    assert "estimated" in found.seconds_source


def test_a_builder_of_ones_own_gets_the_sizes_that_are_stated(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    short = json.loads(plan("cli_models:tiny", "--json").stdout)
    long = plan("cli_models:tiny", "--frames", "24", "--json", "--out", str(out))

    assert Plan.load(out) == Plan.from_json(long.stdout)
    held = [p["regions"][0]["held_bytes"] for p in (short, json.loads(long.stdout))]
    assert held[1] == 2 * held[0]


def test_the_plan_is_printed_as_a_table() -> None:
    result = plan("cli_models:tiny", "--policy", "first_block_cache", "--device", "a100")

    assert "Plan of policy 'first_block_cache' for Talking" in result.stdout
    assert "A100" in result.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["wan2.2-s2v-14b", "--frames", "81"], ["frames=81", "80", "84"]),
        (["wan2.2-s2v-14b", "--height", "100"], ["height=100", "96", "112"]),
        (["wan2.2-s2v"], ["Did you mean 'wan2.2-s2v-14b'", "hunyuanvideo"]),
        (["cli_models:tiny", "--mem-budget", "1KB"], ["budget of 1.00 KB", "Raise mem_budget to"]),
        (["cli_models:tiny", "--device", "h10"], ["h10", "h100"]),
        (["cli_models:tiny", "--policy", "asymetric"], ["asymmetric"]),
        (["cli_models:nobody"], ["cli_models:nobody cannot be imported"]),
        (["cli_models:wrong"], ["must return (model, args, kwargs, conditions)", "int"]),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(
    options: list[str], words: list[str]
) -> None:
    result = plan(*options)

    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert [word for word in words if word not in line] == []
    assert result.stdout == ""
