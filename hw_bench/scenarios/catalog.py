"""Every scenario, by name. A new one is a module beside these and a line here."""

from hw_bench.scenarios.broker_crash import BrokerCrash
from hw_bench.scenarios.contract import Scenario
from hw_bench.scenarios.crash import Crash
from hw_bench.scenarios.crl import CrlCost
from hw_bench.scenarios.enroll import Enroll
from hw_bench.scenarios.fanin import FanIn
from hw_bench.scenarios.fleet_year import FleetYear
from hw_bench.scenarios.forward_auth import ForwardAuth
from hw_bench.scenarios.handshakes import Handshakes
from hw_bench.scenarios.idle import Idle
from hw_bench.scenarios.large_registry import LargeRegistry
from hw_bench.scenarios.latency import Latency
from hw_bench.scenarios.ocsp import Ocsp
from hw_bench.scenarios.publish import Publish
from hw_bench.scenarios.reconnect_storm import ReconnectStorm
from hw_bench.scenarios.revocation import Revocation
from hw_bench.scenarios.soak import Soak
from hw_bench.scenarios.starve import Starve
from hw_bench.scenarios.storm import Storm
from hw_bench.scenarios.workers import Workers

_ALL: tuple[Scenario, ...] = (
    Handshakes(),
    Enroll(),
    Workers(),
    Publish(),
    FanIn(),
    Latency(),
    Idle(),
    Storm(),
    Starve(),
    Soak(),
    Revocation(),
    ForwardAuth(),
    Ocsp(),
    CrlCost(),
    LargeRegistry(),
    Crash(),
    BrokerCrash(),
    FleetYear(),
    ReconnectStorm(),
)
SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
