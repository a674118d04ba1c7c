"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["written_whole"]


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A temporary folder; what is in it moves into `folder` when the block ends well.

    It lies beside `folder`, or in it if there is one already: always on the same file system.

    If the block raises, `folder` stays as it was. Files of the same name are replaced, others are kept.

    Raises:  OSError before the block runs, when `folder` could not be written.
    """
    target = folder.absolute()
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{folder} is a file, not a folder")
    missing = [parent for parent in (target, *target.parents) if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    place = target if target.exists() else target.parent
    try:
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=place))
    except OSError:
        _remove_empty(missing)
        raise
    try:
        yield part
        target.mkdir(exist_ok=True)
        for path in part.iterdir():
            os.replace(path, target / path.name)
    finally:
        shutil.rmtree(part)
        _remove_empty(missing)


def _remove_empty(folders: list[Path]) -> None:
    """Remove those folders, innermost first, that exist and hold nothing."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
