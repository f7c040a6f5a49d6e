"""Full mutual TLS handshakes completed by one core of a server."""

import contextlib
from dataclasses import dataclass

from hw_bench.drivers.handshake import client_context, handshake, refuses
from hw_bench.drivers.pool import DriverPool, total
from hw_bench.peers import fleet_tls, mosquitto, nginx
from hw_bench.peers.contract import Environment, Running
from hw_bench.processes import BenchError
from hw_bench.report import Goal, Report
from hw_bench.scenarios.contract import Findings, conclude, new_environment, start_peers
from hw_bench.turns import Contender, Outcome, Plan, Progress, take_turns

LISTENERS = {peer.name: peer for peer in (fleet_tls.LISTENER, nginx.PEER, mosquitto.PEER)}
OURS, *PEERS = LISTENERS


@dataclass(frozen=True, slots=True)
class Handshakes:
    """Full handshakes with a client certificate, P-256 keys and key exchange, no resumption."""

    name: str = "handshakes"
    tls: str = "TLSv1.3"
    clients: int = 4
    """Driver processes: each has one connection at a time, so this many are under way at once."""
    goals: tuple[Goal, ...] = tuple(Goal(OURS, "per_core", 1.2, peer) for peer in PEERS)

    def description(self) -> str:
        return (
            f"full mutual {self.tls} handshakes on P-256, completed at the server and closed in order, "
            f"{self.clients} at once, for each CPU second of the server"
        )

    def run(self, plan: Plan, progress: Progress) -> Report:
        with contextlib.ExitStack() as stack:
            environment = stack.enter_context(new_environment())
            servers, missing = start_peers(tuple(LISTENERS.values()), environment, stack, progress)
            for server in servers:
                check_client_verification(server, environment, self.tls)
            device = environment.certificates.devices[0]
            config = {"certificate": str(device.certificate), "key": str(device.key), "tls": self.tls}
            pool = stack.enter_context(
                DriverPool(
                    "hw_bench.drivers.handshake",
                    self.clients,
                    config,
                    cores=environment.load_cores,
                    folder=environment.folder,
                )
            )
            cores = environment.cores
            turns = take_turns([contender(server, pool) for server in servers], plan, cores, progress)
        findings = Findings(
            "handshakes",
            cores,
            {server.name: server.version for server in servers},
            pairs=tuple((OURS, peer) for peer in PEERS if peer not in missing),
            ratios_by=("per_core", "per_second"),
            goals=self.goals,
            missing=missing,
            checks=("each server accepted the device and refused an untrusted certificate before it was measured",),
        )
        return conclude(self, plan, turns, findings)


def contender(server: Running, pool: DriverPool) -> Contender:
    """`server` under the handshakes of `pool`."""
    host, port = server.address

    def act(seconds: float) -> Outcome:
        answers = pool.send({"do": "run", "host": host, "port": port, "seconds": seconds}, seconds)
        return Outcome(total(answers, "operations"), total(answers, "failed"))

    return Contender(server.name, server.version, server.pids, act, pool.cpu_seconds)


def check_client_verification(server: Running, environment: Environment, tls: str) -> None:
    """Check that the server verifies client certificates: one that does not has less to do.

    Raises: BenchError.
    """
    device, stranger = environment.certificates.devices[0], environment.certificates.stranger
    known = client_context(str(device.certificate), str(device.key), tls)
    if not handshake(known, server.address):
        raise BenchError(f"{server.name} refused the device's certificate.")
    unknown = client_context(str(stranger.certificate), str(stranger.key), tls)
    if not refuses(unknown, server.address):
        raise BenchError(f"{server.name} accepted an untrusted certificate; its figures would be meaningless.")
