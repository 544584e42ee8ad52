"""The process that answers a campaign's questions: ``python -m qertify.campaign.worker``, one JSON object a line.

The first line names the model; the worker answers {"ready": its digest}. Each further line is a question in integers. The
worker ends when its standard input is closed, which is what happens when the campaign dies.
"""

from __future__ import annotations

import json
import os
import threading
from typing import Any

import numpy as np

from qertify.errors import QertifyError
from qertify.ilp.worker import watch_parent
from qertify.importers.registry import ImportOptions, load_model
from qertify.network.network import Network
from qertify.network.tensor import IntegerArray
from qertify.options import Method, Options
from qertify.queries.radius import maximum_radius
from qertify.queries.robustness import RobustnessQuery, verify
from qertify.specification.property import Classification, Ties
from qertify.specification.region import IntegerBox
from qertify.specification.units import parse_rational


def answer(network: Network, options: Options, question: dict[str, Any]) -> dict[str, Any]:
    """The reply to one question: {"result": …}, {"memory": true} or {"error": one line}."""

    def codes(name: str) -> IntegerArray:
        return np.array(question[name], dtype=np.int64).reshape(network.input_shape)

    label, target, ties = question["label"], question["target"], Ties(question["ties"])
    try:
        if "low" not in question:
            found = maximum_radius(
                network,
                codes("centre"),
                label=label,
                target=target,
                ties=ties,
                max_radius=question["max_radius"],
                options=options,
            )
            return {"result": found.to_json()}
        region = IntegerBox(codes("low"), codes("high"))
        radius = parse_rational(question["radius"], "radius")
        property_ = Classification(label, target, ties)
        query = RobustnessQuery(network, codes("centre"), region, property_, radius, question["radius_unit"])
        return {"result": verify(query, options).to_json()}
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
    threading.Thread(target=watch_parent, args=(requests.fileno(),), daemon=True).start()

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message).encode() + b"\n")
        replies.flush()

    greeting = requests.readline()
    if not greeting:
        return
    first = json.loads(greeting)
    try:
        shape = first["import"].get("input_shape")
        network = load_model(
            first["model"], ImportOptions(**first["import"] | {"input_shape": None if shape is None else tuple(shape)})
        )
        options = Options(**first["options"] | {"method": Method(first["options"]["method"])})
    except QertifyError as error:
        reply({"error": str(error)})
        return
    reply({"ready": network.digest})
    for line in requests:
        reply(answer(network, options, json.loads(line)))


if __name__ == "__main__":
    main()
