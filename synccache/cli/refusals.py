"""Refusals on the command line: one clear line on stderr, exit code 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from synccache.errors import SynccacheError
from synccache.portrait.config import PortraitError

__all__ = ["one_line_errors"]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Refusals become one line on stderr and exit code 1; our own bugs keep their traceback."""
    try:
        yield
    except (SynccacheError, PortraitError, OSError) as error:
        line = " ".join(str(error).split())
        typer.echo(f"{type(error).__name__}: {line}", err=True)
        raise typer.Exit(1) from error
