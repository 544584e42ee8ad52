"""Whole questions as pieces: plain data on the way to a worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qertify.errors import WorkerError
from qertify.network.network import Network
from qertify.network.tensor import IntegerArray
from qertify.options import Options
from qertify.parallel.executor import Executor, Message
from qertify.parallel.worker import Desk
from qertify.queries.equivalence import equivalence
from qertify.queries.radius import maximum_radius
from qertify.queries.real_radius import maximum_real_radius
from qertify.queries.robustness import RobustnessQuery, verify
from qertify.result import Reason
from qertify.runtimes.base import runner, runtime_of
from qertify.search.comparison import EquivalenceQuery, FloatSemantics
from qertify.search.journal import Handed, Journal
from qertify.search.paired_input import PairedInput, grid, images, interval
from qertify.specification.judge import Run
from qertify.specification.pixels import PixelBox, Preprocessing
from qertify.specification.property import Classification, Ties
from qertify.specification.region import IntegerBox
from qertify.specification.units import Unit, parse_rational


def question_piece(query: RobustnessQuery) -> Message:
    """Is the query's property true on its region?"""
    return _point(query) | {
        "low": query.region.low.reshape(-1).tolist(),
        "high": query.region.high.reshape(-1).tolist(),
        "radius": str(query.radius),
        "radius_unit": query.radius_unit,
    }


def search_piece(
    query: RobustnessQuery, unit: Unit, largest: Fraction | None, given: np.ndarray, pixels: PixelBox | None = None
) -> Message:
    """Which is the largest radius around the query's centre, up to ``largest``?

    Args:
        given: the centre as the model reads it.
        pixels: the centre as an image, where radii are pixel steps of images.
    """
    piece = _point(query) | {"unit": unit.value, "max_radius": None if largest is None else str(largest)}
    if unit is Unit.REAL:
        piece["given"] = [given.dtype.kind, given.reshape(-1).tolist()]
    if pixels is not None:
        prepare = pixels.preprocessing
        piece["image"] = [pixels.centre.reshape(-1).tolist(), prepare.mean.tolist(), prepare.std.tolist()]
    return piece


def _point(query: RobustnessQuery) -> Message:
    property_ = query.property
    return {
        "kind": "question",
        "centre": query.centre.reshape(-1).tolist(),
        "label": property_.label,
        "target": property_.target,
        "ties": property_.ties.value,
    }


def answer_question(desk: Desk, piece: Message, stopped: Callable[[], bool]) -> Message:
    """{"result": the answer's JSON}, and "open" where its search was ended by "budget", to go on elsewhere or later.

    The piece may have "open" of an earlier reply, "budget" in seconds, and "left", the seconds until its time limit.
    """
    options = desk.options if piece.get("left") is None else replace(desk.options, timeout=piece["left"])
    journal = None if "low" not in piece else handed_from(piece.get("open"), piece.get("budget"))
    reply = answer_piece(desk.network, options, piece, stopped, run=runner(desk.network, desk.model), journal=journal)
    if journal is not None and journal.written and reply["result"]["reason"] == Reason.INTERRUPTED.value:
        reply["open"] = {"digest": journal.digest, "parts": journal.parts}
    return reply


def handed_from(open_: Message | None, budget: float | None) -> Handed:
    """A journal of what is open; numbers have become text on the way."""
    if open_ is None:
        return Handed(budget)
    return Handed(budget, open_["digest"], {int(number): part for number, part in open_["parts"].items()})


def answer_piece(
    network: Network,
    options: Options,
    piece: Message,
    stopped: Callable[[], bool],
    executor: Executor | None = None,
    run: Run | None = None,
    journal: Journal | None = None,
) -> Message:
    """As `answer_question`, in any process; the arguments are those of `qertify.queries.robustness.verify`."""

    def codes(name: str) -> IntegerArray:
        return np.array(piece[name], dtype=np.int64).reshape(network.input_shape)

    property_ = Classification(piece["label"], piece["target"], Ties(piece["ties"]))
    if "low" not in piece:
        asked: dict[str, Any] = {
            "label": property_.label, "target": property_.target, "ties": property_.ties, "options": options,
            "executor": executor, "run": run, "stopped": stopped,
        }  # fmt: skip
        unit = Unit(piece["unit"])
        largest = None if piece["max_radius"] is None else Fraction(piece["max_radius"])
        if unit is Unit.REAL:
            kind, given = piece["given"]
            centre = np.array(given, dtype=np.float32 if kind == "f" else np.int64).reshape(network.input_shape)
            found = maximum_real_radius(network, centre, max_radius=largest, **asked)
        else:
            whole = None if largest is None else int(largest)
            found = maximum_radius(network, codes("centre"), max_radius=whole, images=_images(network, piece), **asked)
            found = replace(found, radius_unit=unit.value)
        return {"result": found.to_json()}
    region = IntegerBox(codes("low"), codes("high"))
    radius = parse_rational(piece["radius"], "radius")
    query = RobustnessQuery(network, codes("centre"), region, property_, radius, piece["radius_unit"])
    return {"result": verify(query, options, executor=executor, run=run, stopped=stopped, journal=journal).to_json()}


def _images(network: Network, piece: Message) -> Callable[[int], PixelBox] | None:
    """Radius in pixel steps → images, if the piece is about such."""
    if "image" not in piece:
        return None
    pixels, mean, std = piece["image"]
    centre = np.array(pixels, dtype=np.int64).reshape(network.input_shape)
    return PixelBox(centre, centre, centre, _preprocessing(mean, std), runtime_of(network).quantize_input).around


def comparison_piece(query: EquivalenceQuery) -> Message:
    """Do two networks agree on the query's region?"""
    inputs = query.inputs
    prepare = None if inputs.images is None else inputs.images.preprocessing
    return {
        "kind": "comparison",
        "original": query.original.digest,
        "region": inputs.kind,
        "ends": [end.reshape(-1).tolist() for end in inputs.ends()],
        "prepare": None if prepare is None else [prepare.mean.tolist(), prepare.std.tolist()],
        "factor": str(inputs.factor),
        "delta": None if query.delta is None else str(query.delta),
        "top1": query.top1,
        "output": query.output,
        "semantics": query.semantics.value,
    }


def answer_comparison(desk: Desk, piece: Message, stopped: Callable[[], bool]) -> Message:
    """{"result": the answer's JSON}.

    Raises:
        WorkerError: the worker has not read the query's original.
    """
    if desk.original is None or desk.original.digest != piece["original"]:
        raise WorkerError("the question is about another original than the worker has read")
    delta = None if piece["delta"] is None else Fraction(piece["delta"])
    semantics = FloatSemantics(piece["semantics"])
    query = EquivalenceQuery(
        desk.original, desk.network, _region(desk.network, piece), delta, piece["top1"], piece["output"], semantics
    )
    return {"result": equivalence(query, desk.options, stopped=stopped).to_json()}


def _region(network: Network, piece: Message) -> PairedInput:
    def ends(kind: type) -> tuple[NDArray[Any], NDArray[Any]]:
        low, high = (np.array(end, dtype=kind).reshape(network.input_shape) for end in piece["ends"])
        return low, high

    factor = Fraction(piece["factor"])
    match piece["region"]:
        case "images":
            low, high = ends(np.int64)
            quantize = runtime_of(network).quantize_input
            return images(network, PixelBox(low, high, low, _preprocessing(*piece["prepare"]), quantize))
        case "codes":
            return grid(network, IntegerBox(*ends(np.int64)), factor)
        case _:
            return interval(network, *ends(np.float32), factor)


def _preprocessing(mean: list[Any], std: list[Any]) -> Preprocessing:
    return Preprocessing(np.array(mean, dtype=np.float32), np.array(std, dtype=np.float32))
