"""The workers of a command, while it runs."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qertify.cli.common import say
from qertify.importers.original import Original
from qertify.importers.registry import ImportOptions
from qertify.options import Options

if TYPE_CHECKING:
    from qertify.network.network import Network
    from qertify.parallel.executor import Executor
    from qertify.parallel.place import Place


@contextmanager
def sharing(
    place: Place,
    model: Path,
    imports: ImportOptions,
    options: Options,
    network: Network,
    *,
    always: bool = False,
    original: Original | None = None,
) -> Generator[Executor | None]:
    """The workers of a place, or none where one question is best answered in this process.

    Args:
        options: of the work; its memory is shared out among the workers, and this process for a single question.
        always: start a process even if that is the only one.
        original: what the model is compared with, where workers have to read it, too.

    Raises:
        QertifyError: as `qertify.parallel.place.open_executor`.
    """
    if place.alone and not always:
        yield None
        return
    from qertify.parallel.place import open_executor
    from qertify.parallel.worker import greeting

    hands = place.workers + (not always)
    share = None if options.memory is None else options.memory // hands
    mine = replace(options, memory=share)
    with open_executor(place, greeting(model, imports, mine, original), network.digest, share, say) as executor:
        yield executor
