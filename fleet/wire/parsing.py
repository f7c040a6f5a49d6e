"""One door for everything that the `cryptography` library may raise over a peer's bytes."""

from collections.abc import Iterator
from contextlib import contextmanager

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from fleet.wire.errors import Malformed, Unsupported, WireError

# A panic of the library's Rust half is a BaseException from a module that can't be imported by name.
_RUST_PANIC_MODULE = "pyo3_runtime"


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turn what the library raises over `what` ("certificate request") into a WireError of one plain sentence.

    Raises: Unsupported for an algorithm, version or name type that the library does not know, else Malformed.
    """
    try:
        yield
    except WireError:
        raise
    except (UnsupportedAlgorithm, x509.InvalidVersion, x509.UnsupportedGeneralNameType) as error:
        raise Unsupported(f"The {what} uses an algorithm, version or type that is not supported.") from error
    except Exception as error:
        # The library documents ValueError, and raises TypeError, OverflowError and its own besides.
        raise Malformed(f"The {what} can't be read: it is damaged or not what it says it is.") from error
    except BaseException as error:
        if type(error).__module__ != _RUST_PANIC_MODULE:
            raise
        raise Malformed(f"The {what} can't be read: it is damaged or not what it says it is.") from error
