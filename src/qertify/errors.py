"""Every error a user can cause, in one tree. The command line prints one as one line and exits with status 2."""

from __future__ import annotations


class QertifyError(Exception):
    """Base of all errors that a user can act upon."""


class ModelFileError(QertifyError):
    """A model file that can't be read: missing, truncated, damaged, hostile, or of another format."""


class InvalidNetworkError(QertifyError):
    """A network that breaks a rule of the integer network. Names the node.

    Attributes:
        node: name of the offending node, or None when the whole graph is at fault.
    """

    def __init__(self, node: str | None, reason: str) -> None:
        self.node = node
        super().__init__(f"node '{node}': {reason}" if node is not None else reason)


class UnsupportedModelError(QertifyError):
    """A valid model that uses something qertify doesn't support. Says what would be needed.

    Attributes:
        node: name of the node in the source file.
        op: its operator.
        attribute: the attribute at fault, or None when it is the operator itself.
    """

    def __init__(self, node: str, op: str, attribute: str | None, reason: str) -> None:
        self.node, self.op, self.attribute = node, op, attribute
        what = f"{op}.{attribute}" if attribute else op
        super().__init__(f"node '{node}' ({what}) is not supported: {reason}")


class InvalidInputError(QertifyError):
    """An input, label, region or option that makes no sense for the network at hand."""


class MissingExtraError(QertifyError):
    """An optional dependency is not installed.

    Attributes:
        extra: the name of the extra that brings it.
    """

    def __init__(self, feature: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f"{feature} needs an optional dependency: pip install 'qertify[{extra}]'")


class SolverError(QertifyError):
    """An external solver that could not be started or broke its own protocol."""


class ReplayError(QertifyError):
    """A counterexample that the evaluator does not confirm, or that contradicts a proof. Always a defect of qertify."""


class StoreError(QertifyError):
    """A results file that can't be read or written: damaged, of another kind or campaign, in use, or on a full disk."""


class WorkerError(QertifyError):
    """Worker processes that can't be started, or that die before they do any work."""


class CertificateError(QertifyError):
    """A certificate that can't be read or written, that is of another network, or that a verdict does not allow."""
