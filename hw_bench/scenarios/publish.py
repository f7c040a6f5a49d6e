"""Messages a second from devices on TLS to a subscriber at the broker: through the gateway, and without it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from hw_bench.certificates import Identity
from hw_bench.drivers.pool import DriverPool, total
from hw_bench.peers import mosquitto
from hw_bench.peers.contract import Environment, Running
from hw_bench.report import Goal, Report
from hw_bench.scenarios.beside_mosquitto import beside_mosquitto
from hw_bench.scenarios.contract import Findings, conclude
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
    under_way: int = 1500
    """Messages of all devices that may be on their way to the subscriber at once: a broker drops those beyond 2,000."""

    def description(self) -> str:
        return (
            f"messages of {self.size} octets from {self.devices} devices on {self.tls} to a subscriber at the broker: "
            "through the fleet's gateway and its mosquitto, beside mosquitto's own TLS listener, on the same two cores"
        )

    @property
    def goals(self) -> tuple[Goal, ...]:
        return tuple(Goal(f"gateway-qos{qos}", "per_second", 1.0, f"mosquitto-qos{qos}") for qos in QOS)

    def run(self, plan: Plan, progress: Progress) -> Report:
        chosen = QOS if plan.qos is None else (plan.qos,)
        with contextlib.ExitStack() as stack:
            pair = stack.enter_context(beside_mosquitto(self.devices * len(chosen), progress))
            contenders = [
                stack.enter_context(self._contender(server, qos, pair.devices[at :: len(chosen)], pair.environment))
                for at, qos in enumerate(chosen)
                for server in pair.servers
            ]
            cores = pair.environment.cores
            turns = take_turns(contenders, plan, cores, progress)
        lost = sum(turn.failed for turn in turns)
        findings = Findings(
            "messages",
            cores,
            {contender.name: contender.version for contender in contenders},
            pairs=tuple((f"gateway-qos{qos}", f"mosquitto-qos{qos}") for qos in chosen),
            ratios_by=("per_second", "per_core"),
            goals=self.goals if plan.qos is None else (),
            checks=(f"of all messages, compared one by one with those sent, {lost} were lost or doubled",),
        )
        return conclude(self, plan, turns, findings)

    @contextlib.contextmanager
    def _contender(
        self, server: Running, qos: int, devices: list[Identity], environment: Environment
    ) -> Iterator[Contender]:
        """With devices of its own, connected for the whole run: an id can be connected once."""
        name = f"{server.name}-qos{qos}"
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
            "devices": [
                {"name": one.name, "certificate": str(one.certificate), "key": str(one.key)} for one in devices
            ],
        }
        with DriverPool(
            "hw_bench.drivers.publish", 1, config, cores=environment.load_cores, folder=environment.new_folder(name)
        ) as pool:

            def act(seconds: float) -> Outcome:
                answers = pool.send({"do": "run", "seconds": seconds}, seconds)
                return Outcome(total(answers, "operations"), total(answers, "failed"), answers[0]["wall"])

            yield Contender(name, server.version, server.pids, act, pool.cpu_seconds)
