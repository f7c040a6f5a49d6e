"""What every test stands on."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres_server import PostgresServer, programs, running_postgres

os.environ.pop("FLEET_DATABASE", None)  # every test has a registry of its own

# Started in the background of a script, we would hand an ignored SIGINT on to every program under test, and those that
# Ctrl-C must end would not hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres_programs() -> Path:
    """Where PostgreSQL's own programs are."""
    found = programs()
    if found is None:
        pytest.skip("postgresql: not installed")
    return found


@pytest.fixture(scope="session")
def postgres_server(postgres_programs: Path) -> Iterator[PostgresServer]:
    """A cluster of this process's own, which no test may stop or kill."""
    with running_postgres(postgres_programs) as server:
        yield server
