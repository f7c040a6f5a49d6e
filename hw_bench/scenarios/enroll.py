"""Durable first enrollments completed by one core of `fleet serve`, beside step-ca."""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fleet.home.layout import open_registry
from hw_bench.drivers.pool import DriverPool, total
from hw_bench.peers import step_ca
from hw_bench.peers.contract import Environment, Running
from hw_bench.peers.home import MODEL, FleetHome, make_home, serve
from hw_bench.processes import BenchError
from hw_bench.report import Goal, Report
from hw_bench.scenarios.contract import Findings, conclude, file_system, new_environment, start_peers
from hw_bench.turns import Contender, Outcome, Plan, Progress, take_turns

READY_FACTOR = 2  # requests made ahead for a turn, against the best rate seen so far
READY_RATE_MIN = 1500  # a second, before anything is known
TOKEN_USES = 100_000  # the most that a token may have; a minute and a half of enrolling


@dataclass(frozen=True, slots=True)
class Enroll:
    """Fresh TLS connection, CSR up, certificate committed with an fsync and back, connection closed."""

    name: str = "enroll"
    tls: str = "TLSv1.3"
    drivers: int = 2
    at_once: int = 16
    """Connections under way in each driver: concurrent commits share one fsync, as in a real storm."""
    goals: tuple[Goal, ...] = (
        Goal("token", "per_core", 900),
        Goal("station", "per_core", 900),
        Goal("token", "per_core", 1.3, step_ca.NAME),
    )

    def description(self) -> str:
        return (
            f"first enrollments by token and by a station's certificate at `fleet serve`, each on a fresh {self.tls} "
            f"connection and committed with an fsync before the answer, {self.drivers * self.at_once} at once; beside "
            "step-ca with one-time tokens of a JWK provisioner and its badger database"
        )

    def run(self, plan: Plan, progress: Progress) -> Report:
        with contextlib.ExitStack() as stack:
            environment = stack.enter_context(new_environment())
            progress("making a home")
            home = make_home(environment)
            logins = {"token": token_login(home), "station": _station(home, environment)}
            progress("starting fleet serve")
            served = stack.enter_context(serve(home, environment))
            peers, missing = start_peers((step_ca.PEER,), environment, stack, progress)
            servers = [replace(served.est_server(name), login=login) for name, login in logins.items()] + peers
            pools = {one.name: stack.enter_context(self.pool(one.name, one.login, environment)) for one in servers}
            contenders = [self.contender(pools[one.name], one) for one in servers]
            turns = take_turns(contenders, plan, environment.cores, progress)
            progress("comparing every certificate with the registry")
            received = {name: _collect(pool) for name, pool in pools.items()}
            checks = (
                *_check([one for name in logins for one in received[name]], home),
                *(_distinct(peer.name, received[peer.name]) for peer in peers),
                f"the registry is on {file_system(environment.folder)}",
            )
        findings = Findings(
            "enrollments",
            environment.cores,
            {one.name: one.version for one in servers},
            pairs=tuple((name, peer.name) for name in logins for peer in peers),
            ratios_by=("per_core", "per_second"),
            goals=self.goals,
            missing=missing,
            checks=checks,
        )
        return conclude(self, plan, turns, findings)

    def pool(self, name: str, login: Mapping[str, Any], environment: Environment) -> DriverPool:
        """Drivers that enroll devices by `login`; device ids start with `name`."""
        folder = environment.new_folder(f"load-{name}")
        config = {**login, "tls": self.tls, "model": MODEL, "prefix": name}
        return DriverPool("hw_bench.drivers.enroll", self.drivers, config, cores=environment.load_cores, folder=folder)

    def contender(self, pool: DriverPool, server: Running) -> Contender:
        """`server` under the load of `pool`."""
        host, port = server.address
        best = [float(READY_RATE_MIN)]

        def prepare(seconds: float) -> None:
            count = round(best[0] * READY_FACTOR * seconds / self.drivers)
            pool.send({"do": "top-up", "count": count}, seconds)

        def act(seconds: float) -> Outcome:
            command = {"do": "run", "host": host, "port": port, "seconds": seconds, "at_once": self.at_once}
            answers = pool.send(command, seconds)
            done = total(answers, "operations")
            if not done:
                problems = [problem for answer in answers for problem in answer["problems"]]
                raise BenchError(f"no enrollment by {server.name} succeeded: {' | '.join(problems[:1])}")
            best[0] = max(best[0], done / seconds)
            return Outcome(done, total(answers, "failed"))

        return Contender(server.name, server.version, server.pids, act, pool.cpu_seconds, prepare)


def token_login(home: FleetHome) -> dict[str, str]:
    """Login of a driver by a token with many uses."""
    text = home.fleet("token", "create", "--model", MODEL, "--uses", str(TOKEN_USES)).strip()
    return {"password": text, "certificate": "", "key": ""}


def _station(home: FleetHome, environment: Environment) -> dict[str, str]:
    folder = environment.folder / "station"
    home.fleet("station", "add", "bench", "--model", MODEL, "--out", str(folder))
    return {"password": "", "certificate": str(folder / "station.pem"), "key": str(folder / "station.key")}


def _collect(pool: DriverPool) -> list[str]:
    """The fingerprints of all certificates that `pool` has received. Raises: BenchError when one is for another key."""
    return [fingerprint for answer in pool.send({"do": "collect"}) for fingerprint in answer["fingerprints"]]


def _distinct(name: str, received: list[str]) -> str:
    """Raises: BenchError when two are the same."""
    if len(set(received)) != len(received):
        raise BenchError(f"{name} issued {len(received) - len(set(received))} certificates twice.")
    return f"all {len(received):,} certificates received from {name} were distinct and for the key sent"


def _check(received: list[str], home: FleetHome) -> tuple[str, ...]:
    """Raises: BenchError when two are the same, or one is not in the registry."""
    _distinct("fleet serve", received)
    unknown = asyncio.run(_unknown(received, home))
    if unknown:
        raise BenchError(f"{unknown} of {len(received)} certificates that clients hold are not in the registry.")
    return (f"all {len(received):,} certificates received were distinct, for the key sent, and in the registry",)


async def _unknown(received: list[str], home: FleetHome) -> int:
    registry = await open_registry(home.files)
    try:
        facts = await asyncio.gather(*(registry.holder_facts(bytes.fromhex(one)) for one in received))
    finally:
        await registry.close()
    return sum(fact is None for fact in facts)
