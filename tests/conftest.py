"""What every test stands on."""

import gc
import os
import signal
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests import forks, server_logs
from tests.postgres_server import PostgresServer, programs, running_postgres
from tests.tiers import Tier, is_quick, place_in_order

os.environ.pop("FLEET_DATABASE", None)  # every test has a registry of its own

# Started in the background of a script, we would hand an ignored SIGINT on to every program under test, and those that
# Ctrl-C must end would not hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

server_logs.watch_processes()

# Of each property. An example's own deadline is off: how long one takes is the machine's affair.
for each, examples in ((Tier.QUICK, 25), (Tier.SHORT, 60), (Tier.ALL, 1000)):
    settings.register_profile(each, max_examples=examples, deadline=None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tier", type=Tier, choices=list(Tier), default=Tier.SHORT, help="how much runs (tests/tiers.py)")


def pytest_configure(config: pytest.Config) -> None:
    tier: Tier = config.getoption("--tier")
    settings.load_profile(tier)
    if tier is not Tier.ALL:  # it installs packages from the network
        # aiohttp reads the CAs of this machine when it is imported, by each server that a test starts. None is of use.
        os.environ["SSL_CERT_FILE"] = os.devnull


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process more than processors: tests that talk to servers wait for a fifth of their time."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return processors if config.getoption("--tier") is Tier.QUICK else processors + 1


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if config.getoption("--tier") is Tier.QUICK and not is_quick(collection_path) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tier: Tier = config.getoption("--tier")
    if tier is not Tier.ALL:
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    items.sort(key=lambda item: place_in_order(item.path, tier))


def pytest_collection_finish() -> None:
    """What has been collected stays to the end: no collection of garbage needs to look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tier(pytestconfig: pytest.Config) -> Tier:
    found: Tier = pytestconfig.getoption("--tier")
    return found


def pytest_runtest_setup() -> None:
    server_logs.forget_ended()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections.extend(server_logs.ends())
    return report


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


@pytest.fixture(scope="module")
def forked_programs() -> Iterator[None]:
    """Programs of ours that the module's tests start, and those that the tested code starts, begin with all imported.

    For modules that are about what such a program does, not about how it starts or what it weighs.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", forks.fork_or_execute)
        yield
