"""Messages a second from devices on TLS to a subscriber at the broker: through the gateway, and without it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hw_bench.certificates import Certificates, Identity
from hw_bench.cpu_time import process_tree
from hw_bench.drivers.pool import DriverPool, total
from hw_bench.peers import mosquitto
from hw_bench.peers.contract import Environment, Running
from hw_bench.peers.fleet_tls import version
from hw_bench.peers.home import FleetHome, Served, enroll_devices, make_home, serve
from hw_bench.processes import BenchError
from hw_bench.report import Goal, Report
from hw_bench.scenarios.contract import Findings, conclude, new_environment
from hw_bench.turns import Contender, Outcome, Plan, Progress, take_turns

QOS = (0, 1)


@dataclass(frozen=True, slots=True)
class Publish:
    """Both on the same two cores, load included, each process where the system puts it."""

    name: str = "publish"
    tls: str = "TLSv1.3"
    devices: int = 50
    size: int = 64
    """Octets of payload."""
    burst: int = 10
    """Messages that a device sends at a time, each in a TLS record of its own."""
    under_way: int = 2000
    """QoS 0 messages of all devices that may be on their way at once."""

    def description(self) -> str:
        return (
            f"messages of {self.size} octets from {self.devices} devices on {self.tls} to a subscriber at the broker: "
            "through the fleet's gateway and its mosquitto, beside mosquitto's own TLS listener, on the same two cores"
        )

    @property
    def goals(self) -> tuple[Goal, ...]:
        return tuple(Goal(f"gateway-qos{qos}", "per_second", 0.8, f"mosquitto-qos{qos}") for qos in QOS)

    def run(self, plan: Plan, progress: Progress) -> Report:
        reason = mosquitto.missing()
        if reason is not None:
            raise BenchError(f"{reason}; there is nothing to compare with.")
        with contextlib.ExitStack() as stack:
            apart = stack.enter_context(new_environment())
            # A gateway with its broker is two processes and mosquitto is one: pinning either would choose the winner.
            environment = replace(apart, cores=apart.cores.together())
            progress("making a home")
            home = make_home(environment)
            progress("starting fleet serve")
            served = stack.enter_context(serve(home, environment))
            progress(f"enrolling {self.devices} devices")
            devices = enroll_devices(home, served, environment, self.devices * len(QOS))
            progress("starting mosquitto")
            peer = stack.enter_context(mosquitto.start(replace(environment, certificates=_certificates(home, devices))))
            gateway = served_gateway(served)
            contenders = [
                stack.enter_context(self._contender(server, qos, devices, environment))
                for qos in QOS
                for server in (gateway, peer)
            ]
            cores = environment.cores
            turns = take_turns(contenders, plan, cores, progress)
        lost = sum(turn.failed for turn in turns)
        findings = Findings(
            "messages",
            cores,
            {contender.name: contender.version for contender in contenders},
            pairs=tuple((f"gateway-qos{qos}", f"mosquitto-qos{qos}") for qos in QOS),
            ratios_by=("per_second", "per_core"),
            goals=self.goals,
            checks=(f"of all messages, compared one by one with those sent, {lost} were lost or doubled",),
        )
        return conclude(self, plan, turns, findings)

    @contextlib.contextmanager
    def _contender(
        self, server: Running, qos: int, devices: list[Identity], environment: Environment
    ) -> Iterator[Contender]:
        name = f"{server.name}-qos{qos}"
        # Each contender has devices of its own, connected for the whole run: an id can be connected once.
        mine = devices[QOS.index(qos) :: len(QOS)]
        host, port = server.address
        config = {
            "host": host,
            "port": port,
            "tls": self.tls,
            "broker": server.broker,
            "user": mosquitto.SUBSCRIBER,
            "topic": f"qos{qos}",
            "qos": qos,
            "size": self.size,
            "burst": self.burst,
            "under_way": self.under_way,
            "devices": [{"name": one.name, "certificate": str(one.certificate), "key": str(one.key)} for one in mine],
        }
        with DriverPool(
            "hw_bench.drivers.publish", 1, config, cores=environment.load_cores, folder=environment.new_folder(name)
        ) as pool:

            def act(seconds: float) -> Outcome:
                answers = pool.send({"do": "run", "seconds": seconds}, seconds)
                return Outcome(total(answers, "operations"), total(answers, "failed"), answers[0]["wall"])

            yield Contender(name, server.version, server.pids, act, pool.cpu_seconds)


def served_gateway(served: Served) -> Running:
    """The gateway with the mosquitto behind it, as one server. Raises: BenchError when there is no mosquitto."""
    names = [(Path("/proc") / str(pid) / "comm").read_text().strip() for pid in process_tree(served.pids)]
    if "mosquitto" not in names:
        raise BenchError("fleet serve started no mosquitto.")
    return Running(
        "gateway",
        f"{version()}; {mosquitto.version()}",
        served.mqtt,
        served.pids,
        broker=str(served.home.path / "run" / "broker.sock"),
    )


def _certificates(home: FleetHome, devices: list[Identity]) -> Certificates:
    """The home's own, for another server to use."""
    return Certificates(
        anchors=home.write_anchors(home.path / "anchors.pem"),
        root=home.files.root_certificate,
        server=Identity("server", home.files.server_chain, home.files.server_key),
        devices=tuple(devices),
        stranger=devices[0],
    )
