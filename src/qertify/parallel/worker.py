"""What a worker does: ``python -m qertify.parallel.worker``, one JSON object a line; on a cluster, the same as function calls.

The first line names the model; the worker answers {"ready": its digest}. Each further line is a piece, or {"stop": true} for
the piece it works on, which then hands in what it has. The worker ends when its standard input is closed, which is what
happens when whoever started it dies.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from qertify.errors import QertifyError
from qertify.importers.original import Original
from qertify.importers.registry import ImportOptions, load_model
from qertify.network.network import Network
from qertify.network.real import RealNetwork
from qertify.options import Method, Options
from qertify.parallel.executor import Message

KINDS = {
    "question": "qertify.queries.pieces:answer_question",
    "comparison": "qertify.queries.pieces:answer_comparison",
    "search": "qertify.search.pieces:answer_search",
}
"""Kind of piece → "module:function" of (desk, piece, stopped)."""


def greeting(model: Path, imports: ImportOptions, options: Options, original: Original | None = None) -> Message:
    """What every worker reads first; ``original`` is what the model is compared with."""
    message: Message = {
        "model": str(model),
        "import": imports.given(),
        "options": asdict(options) | {"method": options.method.value},
    }
    if original is not None:
        message["original"] = [str(original.path), original.flags.given(), original.bits, original.runtime]
    return message


def _imports(given: dict[str, Any]) -> ImportOptions:
    shape = given.get("input_shape")
    values: dict[str, Any] = given | {"input_shape": None if shape is None else tuple(shape)}
    return ImportOptions(**values)


class Answer(Protocol):
    """What answers one kind of piece."""

    def __call__(self, desk: Desk, piece: Message, stopped: Callable[[], bool]) -> Message:
        """The reply: plain data."""
        ...


class Desk:
    """The model that a greeting names, what it is compared with, and the pieces about them.

    Raises:
        QertifyError: a model that can't be read, or options that make no sense.
    """

    def __init__(self, greeting: Message) -> None:
        self.model = str(greeting["model"])
        self.network = load_model(self.model, _imports(greeting["import"]))
        self.original: RealNetwork | Network | None = None
        if "original" in greeting:
            path, flags, bits, runtime = greeting["original"]
            self.original = Original(Path(path), _imports(flags), bits, runtime).load()
        self.options = Options(**greeting["options"] | {"method": Method(greeting["options"]["method"])})
        self._answers: dict[str, Answer] = {}
        for kind, place in KINDS.items():  # seconds of importing on a busy machine, which no piece's limit must pay for
            module, _, name = place.partition(":")
            self._answers[kind] = getattr(import_module(module), name)

    def answer(self, piece: Message, stopped: Callable[[], bool]) -> Message:
        """The reply to one piece; {"memory": true} if it ran out, {"error": one line} if it can't be asked."""
        try:
            return self._answers[piece.get("kind", "question")](self, piece, stopped)
        except MemoryError:
            return {"memory": True}
        except QertifyError as error:
            return {"error": str(error)}


def main() -> None:
    """Serve until standard input ends."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not be read as a reply
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    stop = threading.Event()
    pieces: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def listen() -> None:
        """Take lines even while a piece is worked on; end the process when there are no more."""
        for line in requests:
            message = json.loads(line)
            if "stop" in message:
                stop.set()
            else:
                stop.clear()  # what came before this line meant an earlier piece
                pieces.put(message)
        os._exit(1)

    def reply(message: Message) -> None:
        replies.write(json.dumps(message).encode() + b"\n")
        replies.flush()

    threading.Thread(target=listen, daemon=True).start()
    try:
        desk = Desk(pieces.get())
    except QertifyError as error:
        reply({"error": str(error)})
        return
    reply({"ready": desk.network.digest})
    while True:
        reply(desk.answer(pieces.get(), stop.is_set))


if __name__ == "__main__":
    main()
