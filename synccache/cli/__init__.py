"""The command `synccache`: options in, one clear line on stderr when something is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from synccache.cli.plan import plan_command
from synccache.cli.policies import app as policies_app
from synccache.cli.refusals import one_line_errors
from synccache.errors import SynccacheError
from synccache.portrait.load import WEIGHTS

__all__ = ["app", "main"]

app = typer.Typer(
    help="A cache-policy compiler for audio-driven portrait and video diffusion transformers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_VIDEO_LIBRARIES = ("av", "PIL")
_DEFAULT_BUDGET = "1GB"

_AUDIO = "A WAV file with speech, any rate, mono or stereo. [default: bundled speech]"
_THRESHOLD = "The policy's threshold. [default: the policy's own]"
_BUDGET = "What weights, activations and caches may use together. [default: 1GB]"
_RATIO = "Instead of a budget: the share of the live branches that stay live, in (0, 1]."
_WEIGHTS = "A folder with the portrait's two weight files. [default: the shipped ones]"


def main() -> None:
    """The entry point of the installed command."""
    app()


app.add_typer(policies_app, name="policies")
app.command("plan")(plan_command)


@app.command()
def demo(
    audio: Annotated[Path | None, typer.Option(help=_AUDIO)] = None,
    policy: Annotated[str, typer.Option(help="The cache policy, by name.")] = "asymmetric",
    threshold: Annotated[float | None, typer.Option(help=_THRESHOLD)] = None,
    mem_budget: Annotated[str | None, typer.Option(help=_BUDGET)] = None,
    cache_ratio: Annotated[float | None, typer.Option(help=_RATIO)] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 40,
    guidance: Annotated[float, typer.Option(help="Guidance on the audio; 1 is none.")] = 3.0,
    seed: Annotated[int, typer.Option(help="Fixes the noise and the face.")] = 0,
    weights: Annotated[Path | None, typer.Option(help=_WEIGHTS)] = None,
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("synccache-demo"),
    json: Annotated[bool, typer.Option("--json", help="Only a JSON report on stdout.")] = False,
) -> None:
    """A talking portrait from speech, once as is and once compiled, side by side, with figures."""
    with one_line_errors():
        _require_video_libraries()
        from synccache.demo import Settings, run  # needs the extra: see above

        if mem_budget is None and cache_ratio is None:
            mem_budget = _DEFAULT_BUDGET
        settings = Settings(
            audio=audio,
            policy=policy,
            threshold=threshold,
            mem_budget=mem_budget,
            cache_ratio=cache_ratio,
            steps=steps,
            guidance=guidance,
            seed=seed,
        )
        run(settings, out, as_json=json, weights=weights or WEIGHTS)


def _require_video_libraries() -> None:
    missing = [name for name in _VIDEO_LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise SynccacheError(
            f"the demo writes a video and needs {' and '.join(missing)}",
            hint="pip install 'synccache[video]'",
        )
