"""Errors of the `cryptography` library over a peer's bytes, mapped to WireError in one place."""

from types import TracebackType

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from fleet.wire.errors import Malformed, Unsupported, WireError

# A panic in the library's Rust code is a BaseException from a module that can't be imported by name.
_RUST_PANIC_MODULE = "pyo3_runtime"


class library_errors:  # noqa: N801  reads as the context manager that it is; a class, since a generator costs four times as much
    """Context manager: what the library raises over `what` ("certificate request") becomes a WireError of one sentence.

    Raises: Unsupported for an algorithm, version or name type that the library does not know, else Malformed.
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, WireError):
            return
        if isinstance(error, UnsupportedAlgorithm | x509.InvalidVersion | x509.UnsupportedGeneralNameType):
            raise Unsupported(f"The {self._what} uses an algorithm, version or type that is not supported.") from error
        # The library documents ValueError, and raises TypeError, OverflowError and its own besides.
        if isinstance(error, Exception) or type(error).__module__ == _RUST_PANIC_MODULE:
            raise Malformed(f"The {self._what} can't be read: it is damaged or not what it says it is.") from error
