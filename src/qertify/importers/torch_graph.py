"""PyTorch modules as TorchScript graphs, and a walk over a graph that knows every constant and shape.

Each operator is also run for real, on one example input: shapes, strides, scales and zero points of all intermediate tensors
are read off the results. Values of the example never matter: what depends on them is a `Traced` tensor, and an operator
that has no rule for traced tensors, a branch or a conversion to a number among them, is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx

from qertify.errors import UnsupportedModelError


@dataclass(slots=True, eq=False)
class Traced:
    """A tensor that depends on the network's input.

    Attributes:
        tensor: what it is for the example, batch of one.
        value: what it is for every input; belongs to the lowering rules. None once an operator in place changed its memory
            through another tensor.
    """

    tensor: torch.Tensor
    value: Any


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One operator on traced tensors.

    Attributes:
        name: unique in the graph.
        op: such as "quantized::conv2d".
        arguments: by name, in order.
        repeat: runs the operator with some arguments replaced.
        result: for the example; a tensor, or a list of tensors.
    """

    name: str
    op: str
    arguments: Mapping[str, Any]
    repeat: Callable[[Mapping[str, Any]], Any]
    result: Any

    def unsupported(self, attribute: str | None, reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(self.name, self.op, attribute, reason)


Rule = Callable[[Operation], Any]
"""Gives the value of an operation's result, or one value for each of several results."""

METADATA = frozenset(
    f"aten::{name}"
    for name in (
        "size", "dim", "len", "numel", "stride", "is_quantized", "is_contiguous", "q_scale", "q_zero_point", "qscheme",
        "is_floating_point", "sym_size",
    )
)  # fmt: skip
"""Operators whose result depends on shape, layout and quantization alone."""
_CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {"aten::Int": int, "aten::Float": float, "aten::Bool": bool}
_FIELDS = ("dtype", "device", "shape", "is_cuda", "is_quantized", "layout", "ndim", "requires_grad")


def program_of(module: torch.nn.Module) -> torch.jit.ScriptModule:
    """A module as TorchScript: its symbolic trace where it has one, else compiled from its source. Call within `running`.

    Raises:
        UnsupportedModelError: neither works.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return module
    reasons: list[str] = []
    for build in (lambda: torch.jit.script(torch.fx.symbolic_trace(module)), lambda: torch.jit.script(module)):
        try:
            return build()
        except Exception as error:  # user code runs here and may raise anything
            reasons.append(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
    name = type(module).__name__
    raise UnsupportedModelError(name, "module", None, f"it can be neither traced ({reasons[0]}) nor compiled ({reasons[1]})")


class Walk:
    """Runs one graph, once."""

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self._rules = rules
        self._values: dict[str, Any] = {}
        self._traced: list[Traced] = []

    def run(self, program: torch.jit.ScriptModule, example: Traced) -> Any:
        """What the program returns for the example: a `Traced`, or whatever else it makes.

        Raises:
            UnsupportedModelError: an operator, branch or input that is not supported; names the node.
        """
        graph = program.inlined_graph
        inputs = list(graph.inputs())
        if len(inputs) != 2:
            raise UnsupportedModelError("graph", "forward", None, f"it has {len(inputs) - 1} inputs; one tensor is needed")
        self._values = {inputs[0].debugName(): program, inputs[1].debugName(): example}
        self._traced = [example]
        self._block(graph.nodes())
        return self._values[next(iter(graph.outputs())).debugName()]

    def _block(self, nodes: Iterable[Any]) -> None:
        for node in nodes:
            for output, value in zip(node.outputs(), self._node(node), strict=True):
                self._values[output.debugName()] = value

    def _node(self, node: Any) -> Sequence[Any]:
        values = [self._values[value.debugName()] for value in node.inputs()]
        match node.kind():
            case "prim::Constant":
                return (node.output().toIValue(),)
            case "prim::GetAttr":
                return (getattr(values[0], node.s("name")),)
            case "prim::ListConstruct":
                return (list(values),)
            case "prim::TupleConstruct":
                return (tuple(values),)
            case "prim::ListUnpack" | "prim::TupleUnpack":
                return values[0]
            case "prim::Uninitialized":  # stands for what a branch that is not taken returns
                return (None,)
            case "prim::unchecked_cast":
                return values
            case "prim::TupleIndex":
                return (values[0][values[1]],)
            case "prim::NumToTensor" if not _holds_traced(values):
                return (torch.tensor(values[0]),)
            case kind if kind in _CONVERSIONS and not _holds_traced(values):
                return (_CONVERSIONS[kind](values[0]),)
            case "aten::__is__":
                return (values[0] is values[1],)
            case "aten::__isnot__":
                return (values[0] is not values[1],)
            case "aten::len" if isinstance(values[0], list | tuple):
                return (len(values[0]),)
            case "aten::__getitem__" if isinstance(values[0], list | tuple):
                return (values[0][values[1]],)
            case "prim::If":
                return self._branch(node, values[0])
            case "prim::RaiseException":
                raise self._unsupported(node, f"the module raises an error for inputs of this shape: {values[0]}"[:200])
            case kind if kind.startswith("prim::"):
                field = kind.removeprefix("prim::")
                if field in _FIELDS and len(values) == 1:
                    return (getattr(_concrete(values[0]), field),)
                raise self._unsupported(node, "control flow other than branches on constants is not followed")
            case _:
                return (self._operator(node, values),)

    def _branch(self, node: Any, condition: Any) -> Sequence[Any]:
        if isinstance(condition, Traced):
            raise self._unsupported(node, "a branch depends on the values of a tensor")
        block = list(node.blocks())[0 if condition else 1]
        self._block(block.nodes())
        return [self._values[value.debugName()] for value in block.outputs()]

    def _unsupported(self, node: Any, reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(_name(node), node.kind(), None, reason)

    def _operator(self, node: Any, values: Sequence[Any]) -> Any:
        kind = node.kind()
        schema = torch._C.parse_schema(node.schema())  # pyright: ignore[reportPrivateUsage]
        arguments = dict(zip((argument.name for argument in schema.arguments), values, strict=True))
        keywords = {argument.name for argument in schema.arguments if argument.kwarg_only}
        namespace, _, name = kind.partition("::")
        function = getattr(getattr(getattr(torch.ops, namespace), name), schema.overload_name or "default")

        def repeat(changes: Mapping[str, Any]) -> Any:
            merged = {key: changes.get(key, _concrete(value)) for key, value in arguments.items()}
            positional = [value for key, value in merged.items() if key not in keywords]
            return function(*positional, **{key: value for key, value in merged.items() if key in keywords})

        traced = _holds_traced(values)
        if traced and kind not in METADATA and kind not in self._rules:
            raise self._unsupported(node, "it has no exact integer form here")
        if any(
            _is_written(item) and not isinstance(value, Traced) for item, value in zip(schema.arguments, values, strict=True)
        ):
            raise self._unsupported(node, "it changes a list or a constant in place")
        try:
            result = repeat({})
        except Exception as error:  # its exceptions share no base class
            raise self._unsupported(node, f"torch refuses it: {' '.join(str(error).split())[:200]}") from error
        if not traced or kind in METADATA:
            return result
        for item in _flat(values):
            if isinstance(item, Traced) and item.value is None:
                raise self._unsupported(node, "it reads memory that an operator in place changed through another tensor")
        operation = Operation(_name(node), kind, arguments, repeat, result)
        try:
            value = self._rules[kind](operation)
        except KeyError as error:
            raise self._unsupported(node, f"only its form with the argument {error} is supported") from error
        if name.endswith("_"):
            return self._in_place(values[0], value)
        if isinstance(result, list | tuple):
            return [self._new(tensor, item) for tensor, item in zip(result, value, strict=True)]
        return self._new(result, value)

    def _new(self, tensor: torch.Tensor, value: Any) -> Traced:
        traced = Traced(tensor, value)
        self._traced.append(traced)
        return traced

    def _in_place(self, target: Traced, value: Any) -> Traced:
        """Give a tensor another value, and forget those of other tensors that share its memory."""
        memory = target.tensor.untyped_storage().data_ptr()
        for other in self._traced:
            if other is not target and other.tensor.untyped_storage().data_ptr() == memory:
                other.value = None
        target.value = value
        return target


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _holds_traced(values: Iterable[Any]) -> bool:
    return any(isinstance(value, Traced) for value in _flat(values))


def _concrete(value: Any) -> Any:
    match value:
        case Traced():
            return value.tensor
        case list():
            return [_concrete(item) for item in value]
        case tuple():
            return tuple(_concrete(item) for item in value)
        case _:
            return value


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _name(node: Any) -> str:
    outputs = list(node.outputs())
    name = outputs[0].debugName() if outputs else ""
    return name if name and not name.isdigit() else f"{node.kind().partition('::')[2]}_{name}"
