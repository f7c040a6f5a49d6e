"""How long a revoked device stays connected: from the commit of its revocation to the end of its session.

Devices hold MQTT sessions at two nodes on one PostgreSQL, or at two workers on one SQLite. Another process revokes them
one by one; time is measured from the return of the commit.
"""

import asyncio
import contextlib
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fleet.domain.access import Act
from fleet.domain.ports import Registry
from fleet.home.layout import open_registry
from fleet.services.revocation import revoke
from hw_bench.drivers.session import DeviceSession
from hw_bench.peers import mosquitto, postgres
from hw_bench.peers.contract import Environment
from hw_bench.peers.engine import POSTGRES, SQLITE, engine_of
from hw_bench.peers.home import FleetHome, Served, enroll_devices, serve
from hw_bench.processes import BenchError, on_cores
from hw_bench.report import Figure, Report
from hw_bench.scenarios.contract import file_system, new_environment
from hw_bench.turns import Plan, Progress, machine

NODES = 2
END_SECONDS_MAX = 10.0  # a longer session counts as not ended
P99_MILLISECONDS_MAX = 10.0


@dataclass(frozen=True, slots=True)
class Revocation:
    """Each session must end after its revocation and not before: anything else fails the run."""

    name: str = "revocation"
    tls: str = "TLSv1.3"
    sessions: int = 50

    def description(self) -> str:
        return (
            "milliseconds from a revocation's commit to the end of the device's MQTT session, for --sessions devices "
            "at two nodes on one PostgreSQL, or at two workers on one SQLite; revoked one by one from another process"
        )

    def run(self, plan: Plan, progress: Progress) -> Report:
        reason = mosquitto.missing()
        if reason is not None:
            raise BenchError(f"{reason}; the devices need a broker.")
        with contextlib.ExitStack() as stack:
            apart = stack.enter_context(new_environment())
            cores = apart.cores.together()
            environment = Environment(apart.folder, apart.certificates, cores)
            engine = engine_of(plan.database or (SQLITE if postgres.missing() else POSTGRES))
            stack.callback(engine.stop)
            with on_cores(*cores.all):
                engine.start()
            home = engine.home(environment.folder / "home")
            progress(f"starting fleet serve on {engine.name}")
            nodes = [stack.enter_context(node) for node in _nodes(home, engine.name, environment)]
            count = plan.sessions or self.sessions
            progress(f"enrolling and connecting {count} devices")
            devices = enroll_devices(home, nodes[0], environment, count)
            sessions = []
            for number, device in enumerate(devices):
                session = DeviceSession(device, nodes[number % len(nodes)].mqtt, self.tls)
                stack.callback(session.close)
                sessions.append(session)
            progress("revoking one after another")
            times = asyncio.run(revoke_all(home, sessions))
            where = f"{NODES} nodes" if len(nodes) > 1 else f"{NODES} workers of one node"
            checks = (
                f"{len(sessions)} devices connected to {where}, each session alive until its device was revoked",
                f"the registry is {engine.name} on {file_system(environment.folder)}",
            )
        return Report(
            self.name,
            self.description(),
            "revocations",
            0.0,
            0,
            machine(cores),
            (),
            (),
            (),
            (),
            checks=checks,
            figures=_figures(times),
        )


def _nodes(
    home: FleetHome, engine: str, environment: Environment
) -> Iterator[contextlib.AbstractContextManager[Served]]:
    """Two servers, the second's home a copy of the first's; with SQLite one server with two workers."""
    if engine == SQLITE:
        yield serve(home, environment, "--workers", str(NODES))
        return
    copies = [FleetHome(home.path.with_name(f"{home.path.name}-{number}")) for number in range(1, NODES)]
    for copy in copies:
        shutil.copytree(home.path, copy.path)
    for one in (home, *copies):
        yield serve(one, environment)


async def revoke_all(home: FleetHome, sessions: Sequence[DeviceSession]) -> list[float]:
    """Milliseconds for each. Raises: BenchError when a session ended before, or did not end."""
    registry = await open_registry(home.files)
    try:
        return [await _revoke(registry, session) for session in sessions]
    finally:
        await registry.close()


async def _revoke(registry: Registry, session: DeviceSession) -> float:
    if not session.silent:
        raise BenchError(f"The session of {session.name} had ended before the device was revoked.")
    await revoke(registry, session.name, act=Act("operator", datetime.now(UTC)))
    committed = time.monotonic()
    # The gateway may act before the commit returns here; then the session has ended already.
    if await asyncio.to_thread(session.wait_for_end, END_SECONDS_MAX):
        return (time.monotonic() - committed) * 1000
    raise BenchError(
        f"The session of {session.name} was still open {END_SECONDS_MAX:.0f} s after its device was revoked."
    )


def _figures(times: Sequence[float]) -> tuple[Figure, ...]:
    """Raises: statistics.StatisticsError: fewer than two."""
    percentiles = statistics.quantiles(times, n=100, method="inclusive")
    found = (
        ("p50", percentiles[49], None),
        ("p99", percentiles[98], P99_MILLISECONDS_MAX),
        ("max", max(times), None),
    )
    return (
        Figure("devices revoked", len(times), ""),
        *(
            Figure(f"from the revocation's commit to the session's end, {name}", ms, "ms", at_most=at_most)
            for name, ms, at_most in found
        ),
    )
