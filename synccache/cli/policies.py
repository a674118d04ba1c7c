"""`synccache policies`: the library, one method's file, and a trial of a policy on a tiny model."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from synccache.cli.refusals import one_line_errors
from synccache.errors import PolicyError
from synccache.policies import by_name
from synccache.policies.catalogue import catalogue, source_of
from synccache.policies.files import is_file, load

__all__ = ["app"]

app = typer.Typer(help="The policies of the library, and what a policy of your own would do.")

_NAME = "A method of the library."
_POLICY = "A .py file with one function or Policy, a .json file, or a method of the library."
_MODEL = "tiny-wan, tiny-hunyuan-video, tiny-flux, or module:callable, a builder of your own."
MAX_STEPS = 1000


@app.callback(invoke_without_command=True)
def listing(context: typer.Context) -> None:
    """Lists the library: what each method does, needs and holds, and where it comes from."""
    if context.invoked_subcommand is not None:
        return
    table = Table(title="synccache policies", show_lines=True)
    for column in (
        "method",
        "what it does",
        "arguments",
        "needs",
        "held for each guidance branch",
        "source",
    ):
        table.add_column(column, overflow="fold")
    for entry in catalogue():
        needs = "\n".join(entry.needs) or "nothing"
        source, _, _ = entry.source.partition(". ")
        table.add_row(entry.name, entry.line, entry.arguments, needs, entry.holds, source)
    Console().print(table)


@app.command()
def show(name: Annotated[str, typer.Argument(help=_NAME)]) -> None:
    """Prints a method's file: its source, and the policy itself."""
    with one_line_errors():
        text = source_of(name)
        console = Console()
        code = Syntax(text, "python") if console.is_terminal else Text(text)
        console.print(code, soft_wrap=True)


@app.command()
def check(
    policy: Annotated[str, typer.Argument(help=_POLICY)],
    model: Annotated[str, typer.Option(help=_MODEL)] = "tiny-wan",
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1, max=MAX_STEPS)] = 20,
) -> None:
    """Tries a policy on a tiny model: what it selects, what it holds, what each step would do."""
    with one_line_errors():
        from synccache.cli.check import show as show_trial  # needs torch
        from synccache.cli.check import try_out
        from synccache.cli.models import build_model

        found = load(policy) if is_file(policy) else by_name(policy)
        if not found.rules:
            raise PolicyError(f"{found.name} has no rules: it skips nothing.")
        show_trial(try_out(found, *build_model(model), steps=steps), Console())
