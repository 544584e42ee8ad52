"""What several commands do: limits, files that must be writable, lines for the human."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from qertify.errors import InvalidInputError
from qertify.options import Options


def within(options: Options, left: float | None) -> Options:
    """The options with what is left of the time, less a little, so that the engines end in time to say how far they got."""
    return options if left is None else replace(options, timeout=max(0.85 * left - 0.1, 1e-3))


def check_writable(path: Path | None, suffix: str, flag: str) -> None:
    """Fail before the work rather than after it.

    Raises:
        InvalidInputError: another suffix, or a folder that does not exist or can't be written.
    """
    if path is None:
        return
    if path.suffix != suffix:
        raise InvalidInputError(f"{flag} {path}: the file's name must end with {suffix}")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK) or path.is_dir():
        raise InvalidInputError(f"{flag} {path}: can't write there")


def say(line: str) -> None:
    """One line for the human, on stderr."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def status_line(text: str) -> Generator[Callable[[str], None]]:
    """A live line on stderr if that is a terminal, nothing otherwise; yields what changes it."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(text) as status:
        yield lambda line: status.update(escape(line))
