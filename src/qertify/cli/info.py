"""``qertify info``: what a model file holds, and whether its accumulators can overflow."""

from __future__ import annotations

import json
import sys
from io import StringIO
from typing import Any

import typer

from qertify.cli.flags import JsonOption, ModelArgument, ModelFlags, VerboseOption, with_flags
from qertify.cli.supervisor import Channel


@with_flags
def info(
    context: typer.Context,
    *,
    model: ModelArgument,
    flags: ModelFlags,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Describe a model: layers, bits, quantization, runtime profile, digest, accumulator ranges."""
    from qertify.importers.registry import load_model

    channel: Channel = context.obj
    description = describe(load_model(model, flags.options()))
    return channel.finish(json.dumps(description) + "\n" if as_json else _table(description), 0)


def describe(network: Any) -> dict[str, Any]:
    """A network as JSON data."""
    from dataclasses import asdict

    from qertify.network.ranges import accumulator_proofs

    def meaning(quantization: Any) -> dict[str, Any]:
        return {"scale": quantization.scale.tolist(), "zero_point": quantization.zero_point.tolist()}

    return {
        "model_digest": network.digest,
        "runtime_profile": network.runtime_profile,
        "exactness": network.exactness,
        "metadata": dict(network.metadata),
        "input": {
            "shape": list(network.input_shape),
            "low": network.input.low,
            "high": network.input.high,
            **meaning(network.input_quantization),
        },
        "output": {"size": network.output_size, **meaning(network.output_quantization)},
        "parameters": network.parameter_count,
        "layers": [_layer(node, network.shapes[node.name]) for node in network.nodes],
        "accumulators": [asdict(proof) for proof in accumulator_proofs(network)],
        "saturation": _saturation(network),
    }


def _saturation(network: Any) -> dict[str, list[dict[str, Any]]]:
    """For each CPU class and multiplication: int16 saturation of pairs proved absent, or an input that reaches it, if found."""
    from dataclasses import asdict

    from qertify.runtimes.saturating_input import WORK_LIMIT, saturating_input
    from qertify.runtimes.saturation import CpuClass, pair_proofs

    found: dict[str, dict[str, Any]] = {}
    classes: dict[str, list[dict[str, Any]]] = {}
    for cpu_class in CpuClass:
        classes[cpu_class.value] = entries = []
        for proof in pair_proofs(network, cpu_class):
            entry = asdict(proof)
            if not proof.absent:
                if proof.node not in found:
                    witness = saturating_input(network, proof.node, WORK_LIMIT // (1 + len(network.nodes)) * 4)
                    found[proof.node] = {
                        "input": None if witness is None else witness.codes.reshape(-1).tolist(),
                        "reached": None if witness is None else witness.reached,
                    }
                entry |= found[proof.node]
            entries.append(entry)
    return classes


def _layer(node: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """Name, kind and shape of a node, its parameters, and the codes that its weights or values take."""
    from qertify.network.nodes import Convolution, Dense, Input, Staircase, Table

    layer: dict[str, Any] = {"name": node.name, "kind": type(node).__name__, "shape": list(shape), "parameters": 0}
    match node:
        case Input():
            layer |= {"low": node.low, "high": node.high}
        case Dense() | Convolution():
            weight = node.weight
            low, high = (int(weight.min()), int(weight.max())) if weight.size else (0, 0)
            width = max(high.bit_length(), (-1 - low).bit_length() if low < 0 else 0) + 1
            layer |= {"parameters": weight.size + node.bias.size, "weight_bits": width}
        case Staircase():
            layer |= {"low": node.steps.low, "high": node.steps.high}
        case Table():
            layer |= {"low": int(node.values.min()), "high": int(node.values.max())}
        case _:
            pass
    return layer


def _table(description: dict[str, Any]) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table("node", "kind", "shape", "parameters", "codes", "accumulator")
    proofs = {proof["node"]: proof for proof in description["accumulators"]}
    for layer in description["layers"]:
        codes = f"{layer['low']} … {layer['high']}" if "low" in layer else ""
        if "weight_bits" in layer:
            codes = f"{layer['weight_bits']}-bit weights"
        proof = proofs.get(layer["name"])
        width = "" if proof is None else f"{proof['bits_needed']} of {proof['bits']} bits"
        if proof is not None and not proof["proved"]:
            width += ": may overflow"
        size = "×".join(map(str, layer["shape"]))
        table.add_row(layer["name"], layer["kind"], size, str(layer["parameters"] or ""), codes, width)
    first, last = description["input"], description["output"]
    stream = StringIO()
    terminal = sys.stdout.isatty()
    console = Console(file=stream, force_terminal=terminal, width=None if terminal else 120)
    console.print(f"runtime profile  {description['runtime_profile']}", highlight=False)
    console.print(f"digest           {description['model_digest']}", highlight=False)
    if description["exactness"] == "enclosure":
        console.print("exactness        enclosure: some results are only known to lie between two staircases", highlight=False)
    for key, value in description["metadata"].items():
        console.print(f"{key:<16} {value}", highlight=False, markup=False)
    console.print(f"input            codes {first['low']} … {first['high']}, {_meaning(first)}", highlight=False)
    console.print(f"output           {last['size']} codes, {_meaning(last)}", highlight=False)
    console.print(f"parameters       {description['parameters']}", highlight=False)
    console.print(table)
    proved = all(proof["proved"] for proof in description["accumulators"])
    console.print(
        "accumulators     proved to fit their width for every valid input" if proved else "accumulators     MAY OVERFLOW",
        highlight=False,
    )
    for cpu_class, entries in description["saturation"].items():
        for line in _saturation_lines(entries):
            console.print(f"{'int16 pairs':<16} {cpu_class}: {line}", highlight=False, markup=False)
    return stream.getvalue()


def _saturation_lines(entries: list[dict[str, Any]]) -> list[str]:
    """What a CPU class may do to the products of each node, in words; nothing where no multiplication is known."""
    open_ = [entry for entry in entries if not entry["absent"]]
    if not open_:
        return ["saturation proved absent for every valid input"] if entries else []
    return [
        f"'{entry['node']}' MAY SATURATE, pairs of {entry['operands']} within {entry['low']} … {entry['high']}"
        + ("" if entry["reached"] is None else f"; an input reaches {entry['reached']} (in the JSON)")
        for entry in open_
    ]


def _meaning(quantization: dict[str, Any]) -> str:
    scale, zero_point = quantization["scale"], quantization["zero_point"]
    if len(scale) > 1:
        return f"{len(scale)} scales, one a channel"
    return f"code c means {scale[0]:g} · (c − {zero_point[0]})" if zero_point[0] else f"code c means {scale[0]:g} · c"
