"""How many full mutual TLS handshakes one core of a server completes."""

import contextlib
from dataclasses import dataclass

from hw_bench.drivers.crew import Crew, total
from hw_bench.drivers.handshake import client_context, handshake, refuses
from hw_bench.peers import mosquitto, nginx, ours
from hw_bench.peers.contract import Ground, Running
from hw_bench.processes import BenchError
from hw_bench.report import Goal, Report
from hw_bench.scenarios.contract import Findings, conclude, ground_for, start_peers
from hw_bench.turns import Contender, Outcome, Plan, Progress, take_turns

LISTENERS = {peer.name: peer for peer in (ours.LISTENER, nginx.PEER, mosquitto.PEER)}
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
            ground = stack.enter_context(ground_for())
            servers, missing = start_peers(tuple(LISTENERS.values()), ground, stack, progress)
            for server in servers:
                check_manners(server, ground, self.tls)
            device = ground.certificates.devices[0]
            config = {"certificate": str(device.certificate), "key": str(device.key), "tls": self.tls}
            crew = stack.enter_context(
                Crew("hw_bench.drivers.handshake", self.clients, config, cores=ground.load_cores, folder=ground.folder)
            )
            cores = ground.cores
            turns = take_turns([contender(server, crew) for server in servers], plan, cores, progress)
        findings = Findings(
            "handshakes",
            cores,
            {server.name: server.version for server in servers},
            pairs=tuple((OURS, peer) for peer in PEERS if peer not in missing),
            ratios_by=("per_core", "per_second"),
            goals=self.goals,
            missing=missing,
            checks=("each server let the device in and refused a stranger's certificate before it was measured",),
        )
        return conclude(self, plan, turns, findings)


def contender(server: Running, crew: Crew) -> Contender:
    """`server` under the handshakes of `crew`."""
    host, port = server.address

    def act(seconds: float) -> Outcome:
        answers = crew.order({"do": "run", "host": host, "port": port, "seconds": seconds}, seconds)
        return Outcome(total(answers, "operations"), total(answers, "failed"))

    return Contender(server.name, server.version, server.pids, act, crew.cpu_seconds)


def check_manners(server: Running, ground: Ground, tls: str) -> None:
    """A server that does not verify its clients has less to do: see that this one does.

    Raises: BenchError.
    """
    device, stranger = ground.certificates.devices[0], ground.certificates.stranger
    known = client_context(str(device.certificate), str(device.key), tls)
    if not handshake(known, server.address):
        raise BenchError(f"{server.name} refused the device's certificate.")
    unknown = client_context(str(stranger.certificate), str(stranger.key), tls)
    if not refuses(unknown, server.address):
        raise BenchError(f"{server.name} let a stranger's certificate in; its figures would mean nothing.")
