"""Errors of a database, as the FleetErrors of the service."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fleet.domain.errors import FleetError


@contextmanager
def reported(unavailable: Callable[[Exception], FleetError]) -> Iterator[None]:
    """Any exception of the block becomes the FleetError that `unavailable` makes of it; a FleetError passes as it is,
    so that none is its own cause.
    """
    try:
        yield
    except FleetError:
        raise
    except Exception as error:
        raise unavailable(error) from error
