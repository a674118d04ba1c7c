"""``python -m synccache`` is the installed command."""

from synccache.cli import main

main()
