"""The entry point: starts the command under supervision, turns every error into one line and an exit status."""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from qertify.cli.supervisor import Channel, supervise


def main() -> int:
    """The console script. Exit status as docs/cli.md."""
    for stream in (sys.stdout, sys.stderr):  # a terminal of another encoding shows a question mark, not a traceback
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    return supervise(lambda channel: run(sys.argv[1:], channel))


def run(arguments: Sequence[str], channel: Channel) -> int:
    """Run one command in this process.

    Args:
        arguments: as on the command line, without the program's name.
        channel: receives limits, drafts and the final answer.

    Returns:
        the exit status; no exception leaves, other than KeyboardInterrupt and SystemExit.
    """
    from qertify.errors import QertifyError

    verbose = "-v" in arguments or "--verbose" in arguments
    try:
        from qertify.cli.app import command

        status = command().main(list(arguments), prog_name="qertify", standalone_mode=False, obj=channel)
        sys.stdout.flush()
    except QertifyError as error:
        return _complain(str(error), verbose)
    except OverflowError as error:  # the evaluator's own guard against sums beyond 64 bits
        return _complain(str(error), verbose)
    except MemoryError:
        return _complain("out of memory", verbose)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error; the parser's own base class moves between its versions
            usage: Any = error
            return _complain(f"{usage.format_message().rstrip('.')}; see 'qertify --help'", verbose=False)
        return _complain(f"{type(error).__name__}: {error}; this is a defect of qertify, please report", verbose)
    return status if isinstance(status, int) else 0


def _complain(message: str, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    line = " ".join(message.split())
    print("error: " + "".join(character for character in line if character.isprintable())[:600], file=sys.stderr)
    return 2
