"""``qertify eval``: the reference evaluator on many inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from qertify.cli.common import check_writable, say
from qertify.cli.flags import (
    InputsOption,
    JsonOption,
    ModelArgument,
    ModelFlags,
    PixelFlags,
    TiesOption,
    VerboseOption,
    with_flags,
)
from qertify.cli.supervisor import Channel
from qertify.specification.property import Ties

CHUNK = 1024
"""Rows evaluated at once."""
SHOWN = 20


@with_flags
def evaluate_command(
    context: typer.Context,
    *,
    model: ModelArgument,
    inputs: InputsOption,
    labels: Annotated[str | None, typer.Option(metavar="FILE", help="Labels at the same rows, for the accuracy.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="Y.npy", help="Save the output codes, one row an input.")] = None,
    ties: TiesOption = Ties.FIRST,
    pixels: PixelFlags,
    flags: ModelFlags,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Evaluate a model in exact integers: output codes and predicted classes."""
    import numpy as np

    from qertify.importers.registry import load_model
    from qertify.inputs import read_labels, read_rows
    from qertify.network.evaluate import evaluate

    channel: Channel = context.obj
    check_writable(out, ".npy", "--out")
    network = load_model(model, flags.options())
    rows = read_rows(inputs, network, pixels.preprocessing(network))
    truth = None if labels is None else read_labels(labels, rows.index)
    parts = [evaluate(network, rows.codes[start : start + CHUNK]) for start in range(0, len(rows.codes), CHUNK)]
    outputs = np.concatenate(parts)
    predicted = ties.predicted(outputs)
    if out is not None:
        np.save(out, outputs)
        say(f"wrote {out}: {outputs.shape[0]} rows of {outputs.shape[1]} output codes")
    correct = None if truth is None else int(np.count_nonzero(predicted == truth))
    if as_json:
        meaning = network.output_quantization
        answer: dict[str, Any] = {
            "model_digest": network.digest,
            "runtime_profile": network.runtime_profile,
            "ties": ties.value,
            "predicted": predicted.tolist(),
            "outputs": outputs.tolist(),
            "scale": meaning.scale[0] if meaning.per_tensor else meaning.scale.tolist(),
            "zero_point": int(meaning.zero_point[0]) if meaning.per_tensor else meaning.zero_point.tolist(),
            "correct": correct,
        }
        return channel.finish(json.dumps(answer) + "\n", 0)
    lines = [
        f"row {row}: class {winner}" + ("" if truth is None else f" (label {truth[position]})") + f", outputs {codes.tolist()}"
        for position, (row, winner, codes) in enumerate(
            zip(rows.index[:SHOWN].tolist(), predicted.tolist(), outputs, strict=False)
        )
    ]
    if len(outputs) > SHOWN:
        lines.append(f"… {len(outputs) - SHOWN} more rows; --out or --json give them all")
    if correct is not None:
        lines.append(f"{correct} of {len(outputs)} correct ({correct / len(outputs):.2%})")
    return channel.finish("\n".join(lines) + "\n", 0)
