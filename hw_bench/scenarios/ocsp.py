"""OCSP answers from a registry full of certificates, beside openssl's own responder."""

import contextlib
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from msgspec.structs import replace as changed

from fleet.ca.ocsp import issuer_ids
from fleet.config.addresses import Address
from fleet.config.settings_file import read_settings
from fleet.config.template import render
from fleet.domain.distribution import OCSP_PATH
from fleet.home.layout import certificate_in
from fleet.wire.ocsp import SHA1
from hw_bench.drivers.fill import FilledFleet
from hw_bench.drivers.pool import DriverPool, total
from hw_bench.peers import openssl_ocsp
from hw_bench.peers.contract import Environment, Running
from hw_bench.peers.engine import engine_of
from hw_bench.peers.fleet_tls import version
from hw_bench.peers.home import FleetHome, disable_rate_limits, serve
from hw_bench.processes import BenchError
from hw_bench.report import Figure, Report
from hw_bench.scenarios.contract import Findings, conclude, file_system, new_environment
from hw_bench.scenarios.large_registry import device_certificate, filled
from hw_bench.scenarios.saved_registry import SavedRegistry
from hw_bench.turns import Contender, Outcome, Plan, Progress, take_turns

P99_MILLISECONDS_MAX = 5.0
SEED = 7  # the same certificates in every run
LIVE, KEPT = "fleet, signed live", "fleet, kept answers"


@dataclass(frozen=True, slots=True)
class Ocsp:
    """Any answer that is no success about the certificate asked for counts as failed."""

    name: str = "ocsp"
    asked: int = 20_000
    """Certificates that are asked for in turn, with a nonce."""
    hot: int = 50
    """The same without one."""

    def description(self) -> str:
        return (
            "milliseconds from one client's request to the whole answer, on a fresh connection each: with a nonce for "
            f"{self.asked} of --devices certificates in turn, and without one for {self.hot} of them; beside "
            "`openssl ocsp` with the same certificates in its index"
        )

    def run(self, plan: Plan, progress: Progress) -> Report:
        with contextlib.ExitStack() as stack:
            environment = stack.enter_context(new_environment())
            home, fleet = self._filled(plan, environment, progress)
            progress("starting fleet serve")
            served = stack.enter_context(serve(home, environment))
            if served.publish is None:
                raise BenchError("fleet serve does not publish.")
            chance = random.Random(SEED)  # noqa: S311  which certificates are asked for
            serials = [fleet.credential(chance.randrange(fleet.count)).serial for _ in range(self.asked)]
            servers = [Running(name, version(), served.publish, served.pids) for name in (LIVE, KEPT)]
            reason = openssl_ocsp.missing()
            if reason is None:
                progress("starting openssl ocsp")
                known = (fleet.credential(number).serial for number in range(fleet.count))
                servers.append(stack.enter_context(openssl_ocsp.start(environment, home, known)))
            times: dict[str, list[float]] = {server.name: [] for server in servers}
            contenders = [
                self._contender(server, home, serials, times[server.name], environment, stack) for server in servers
            ]
            turns = take_turns(contenders, plan, environment.cores, progress)
            findings = Findings(
                "answers",
                environment.cores,
                {server.name: server.version for server in servers},
                pairs=((LIVE, openssl_ocsp.NAME),) if reason is None else (),
                ratios_by=("per_core", "per_second"),
                missing={openssl_ocsp.NAME: reason} if reason is not None else {},
                checks=(
                    "every answer counted was a success about the certificate asked for",
                    f"the registry is sqlite on {file_system(environment.folder)}",
                ),
            )
            report = conclude(self, plan, turns, findings)
        return replace(report, figures=(Figure("certificates", plan.devices, ""), *figures(times)))

    def _filled(self, plan: Plan, environment: Environment, progress: Progress) -> tuple[FleetHome, FilledFleet]:
        """A home with plan.devices certificates, which publishes."""
        kept = SavedRegistry(plan.keep or environment.folder / "filled")
        engine = engine_of("sqlite", None)
        found = kept.begin(engine.name, plan.devices)
        home = FleetHome(kept.home) if found else engine.home(kept.home)
        if found:
            fleet, _ = found
        else:
            fleet = FilledFleet(plan.devices, device_certificate(home), datetime.now(UTC).replace(microsecond=0))
            kept.done(engine.name, fleet, filled(home, fleet, progress))
        settings = home.files.settings_file
        settings.write_text(render(changed(read_settings(settings), publish=Address("127.0.0.1", 0))), "utf-8")
        disable_rate_limits(settings)
        return home, fleet

    def _contender(
        self,
        server: Running,
        home: FleetHome,
        serials: Sequence[str],
        times: list[float],
        environment: Environment,
        stack: contextlib.ExitStack,
    ) -> Contender:
        ids = issuer_ids(certificate_in(home.files.issuing_certificate))
        algorithm, name, key = next(each for each in ids if each[0] == SHA1)
        config = {
            "issuer": (algorithm, name.hex(), key.hex()),
            "serials": serials[: self.hot] if server.name == KEPT else serials,
            "nonce": server.name != KEPT,
            "path": "/" if server.name == openssl_ocsp.NAME else OCSP_PATH,
        }
        folder = environment.new_folder(f"load-{server.name.replace(' ', '-')}")
        cores = environment.load_cores
        pool = stack.enter_context(DriverPool("hw_bench.drivers.ocsp", 1, config, cores=cores, folder=folder))
        host, port = server.address

        def act(seconds: float) -> Outcome:
            answers = pool.send({"do": "run", "host": host, "port": port, "seconds": seconds}, seconds)
            times.extend(1000 * each for answer in answers for each in answer["times"])
            return Outcome(total(answers, "operations"), total(answers, "failed"))

        return Contender(server.name, server.version, server.pids, act, pool.cpu_seconds)


def figures(times: dict[str, list[float]]) -> tuple[Figure, ...]:
    """`times`: milliseconds of each answer, by server. Raises: statistics.StatisticsError: fewer than two."""
    found: list[Figure] = []
    for name, values in times.items():
        percentiles = statistics.quantiles(values, n=100, method="inclusive")
        bound = None if name == openssl_ocsp.NAME else P99_MILLISECONDS_MAX
        found.append(Figure(f"{name}, p50", percentiles[49], "ms"))
        found.append(Figure(f"{name}, p99", percentiles[98], "ms", at_most=bound))
    return tuple(found)
