"""Each scenario in miniature, from the first process to the report."""

import asyncio
import json
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fleet.home.layout import open_registry
from hw_bench.drivers.fill import FilledFleet
from hw_bench.peers.engine import SqliteEngine
from hw_bench.processes import BenchError
from hw_bench.report import Figure, Report, Turn, lines
from hw_bench.scenarios import soak as soak_module
from hw_bench.scenarios import workers as workers_module
from hw_bench.scenarios.broker_crash import BrokerCrash
from hw_bench.scenarios.catalog import SCENARIOS
from hw_bench.scenarios.contract import Scenario, file_system
from hw_bench.scenarios.crl import CrlCost
from hw_bench.scenarios.enroll import Enroll
from hw_bench.scenarios.fanin import FanIn
from hw_bench.scenarios.forward_auth import ForwardAuth
from hw_bench.scenarios.handshakes import Handshakes
from hw_bench.scenarios.idle import Idle
from hw_bench.scenarios.large_registry import LargeRegistry, filled
from hw_bench.scenarios.latency import Latency
from hw_bench.scenarios.ocsp import Ocsp
from hw_bench.scenarios.publish import Publish
from hw_bench.scenarios.reconnect_storm import ReconnectStorm
from hw_bench.scenarios.revocation import Revocation
from hw_bench.scenarios.soak import Soak
from hw_bench.scenarios.starve import Starve
from hw_bench.scenarios.storm import Storm
from hw_bench.scenarios.workers import Workers, scaling, throughput
from hw_bench.turns import Plan
from tests.hw_bench.needs import NEEDS_MOSQUITTO, NEEDS_POSTGRES, NEEDS_STEP_CA

pytestmark = pytest.mark.usefixtures("forked_programs")
TINY = Plan(0.2, 1)


def measured(scenario: Scenario) -> dict[str, Any]:
    """The JSON of one tiny run, its shape checked."""
    report = scenario.run(TINY, lambda text: None)
    value: dict[str, Any] = json.loads(json.dumps(report.as_json()))
    assert value["scenario"] == scenario.name
    assert (value["seconds"], value["rounds"]) == (0.2, 1)
    names = [summary["name"] for summary in value["summaries"]]
    assert [turn["contender"] for turn in value["turns"]] == names
    for summary in value["summaries"]:
        assert summary["operations"] > 0
        assert summary["failed"] == 0
        assert summary["version"]
        for measure in ("per_core", "per_second", "milliseconds"):
            assert summary[measure]["min"] <= summary[measure]["median"] <= summary[measure]["max"]
    for ratio in value["ratios"]:
        assert {ratio["subject"], ratio["peer"]} <= set(names)
    assert any(name in line for line in lines(report) for name in names)
    return value


def test_handshakes() -> None:
    value = measured(Handshakes(clients=2))
    there = {summary["name"] for summary in value["summaries"]} | set(value["missing"])
    assert there == {"fleet-tls", "nginx", "mosquitto"}
    assert len(value["verdicts"]) == 2 - len(value["missing"])


@pytest.fixture(scope="module")
def enrollments() -> dict[str, Any]:
    return measured(Enroll(drivers=1, at_once=4))


def test_enroll(enrollments: dict[str, Any]) -> None:
    value = enrollments
    assert [summary["name"] for summary in value["summaries"]][:2] == ["token", "station"]
    assert {summary["name"] for summary in value["summaries"]} | set(value["missing"]) == {
        "token",
        "station",
        "step-ca",
    }
    assert "in the registry" in value["checks"][0]


@NEEDS_STEP_CA
def test_enroll_beside_step_ca(enrollments: dict[str, Any]) -> None:
    value = enrollments
    assert value["summaries"][2]["version"].startswith("step-ca ")
    assert {(ratio["subject"], ratio["peer"]) for ratio in value["ratios"]} == {
        ("token", "step-ca"),
        ("station", "step-ca"),
    }
    assert ("token", "step-ca") in {(one["goal"]["subject"], one["goal"]["peer"]) for one in value["verdicts"]}
    assert "received from step-ca were distinct and for the key sent" in value["checks"][1]


@NEEDS_MOSQUITTO
def test_publish() -> None:
    value = measured(Publish(devices=2, burst=2, under_way=20))
    assert [verdict["goal"]["subject"] for verdict in value["verdicts"]] == ["gateway-qos0", "gateway-qos1"]
    assert value["checks"] == ["of all messages, compared one by one with those sent, 0 were lost or doubled"]


@NEEDS_MOSQUITTO
def test_fanin() -> None:
    # Fewer in all than a broker keeps for a subscriber that a busy machine does not run: it loses those beyond 2,000.
    value = measured(FanIn(sessions=10, rate=900.0))
    assert [verdict["goal"]["peer"] for verdict in value["verdicts"]] == ["mosquitto"]
    assert value["checks"] == ["10 devices connected to each, 0 messages lost"]


@NEEDS_MOSQUITTO
def test_latency() -> None:
    value = measured(Latency(devices=4, under_way=10))
    figures = {figure["name"]: figure["value"] for figure in value["figures"]}
    assert figures["rate"] > 0
    for server in ("gateway", "mosquitto"):
        assert 0 < figures[f"{server}, p50"] <= figures[f"{server}, p99"]
    assert figures["added by the gateway, p50"] == figures["gateway, p50"] - figures["mosquitto, p50"]


@NEEDS_MOSQUITTO
def test_soak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak_module, "SETTLED_LOOKS", 2)
    lines: list[str] = []
    soak = Soak(devices=3, cycles=20)
    report = soak.run(TINY, lines.append)
    assert report.checks == tuple(line for line in lines if "cycles: " in line)
    assert len(report.checks) == 20
    assert [figure.name for figure in report.figures] == [
        f"{name}: growth of {what}"
        for name in ("supervisor", "mosquitto", "worker 1", "worker 2")
        for what in ("resident memory", "descriptors")
    ]
    monkeypatch.setattr(soak_module, "SAMPLES", 4)
    with pytest.raises(BenchError, match="worker 1: growth of resident memory"):
        replace(soak, growth_max=-(2**30)).run(TINY, lines.append)


@NEEDS_MOSQUITTO
def test_idle() -> None:
    report = Idle(at_once=8).run(replace(TINY, sessions=40), lambda text: None)
    count, ours, floor, theirs = report.figures
    assert count.value == 40
    assert (ours.at_most, ours.unit) == (32, "KiB")
    assert all(figure.value >= 0 for figure in (ours, floor, theirs))


def test_reconnect_storm(tmp_path: Path) -> None:
    plan = replace(TINY, sessions=40, seed=7, picture=tmp_path / "reconnects.svg")
    report = ReconnectStorm().run(plan, lambda text: None)
    figures = {figure.name: figure for figure in report.figures}
    assert figures["devices back, of 40"].value == 40
    assert 0 < figures["most reconnects in a second"].value < 40
    assert 0 < figures["until half of them were back"].value < figures["until all were back"].value
    assert b"Reconnects a second of 40 agents" in (tmp_path / "reconnects.svg").read_bytes()
    assert ReconnectStorm().run(plan, lambda text: None).figures == report.figures  # the seed's


@NEEDS_MOSQUITTO
def test_storm() -> None:
    report = Storm(at_once=8).run(replace(TINY, sessions=20), lambda text: None)
    figures = {figure.name: figure for figure in report.figures}
    for server in ("gateway", "mosquitto"):
        assert figures[f"{server}: devices back, of 20"].value == 20
        assert 0 < figures[f"{server}: a device's time, p50"].value <= figures[f"{server}: until all were back"].value
    assert figures["connects a CPU second, gateway / mosquitto"].at_least == 1.5
    assert (
        figures["gateway: refused, and tried again"].value,
        figures["gateway: refused, and tried again"].at_most,
    ) == (0, 0)


@NEEDS_MOSQUITTO
def test_starve() -> None:
    report = Starve(devices=3, passes=2, strangers=20).run(TINY, lambda text: None)
    figures = {figure.name: figure for figure in report.figures}
    for server in ("gateway", "est", "mosquitto"):
        assert figures[f"{server}: newcomers refused under attack, of 6"].value == 0
        assert figures[f"{server}: silent connections opened"].value >= 20
        assert figures[f"{server}: p99 under attack"].value > 0
    assert figures["gateway: p99 under attack / without"].at_most == 2


@NEEDS_MOSQUITTO
def test_broker_crash() -> None:
    scenario = BrokerCrash(window=10, per_second=50, life_seconds=(0.3, 0.6))
    report = scenario.run(replace(TINY, kills=2, seed=1), lambda text: None)
    figures = {figure.name: figure for figure in report.figures}
    for setting in ("durable = false", "durable = true"):
        assert figures[f"{setting}: acknowledged"].value > 2
        assert figures[f"{setting}: acknowledged before the kill and lost"].value < 5
    assert figures["durable = true: lost"].value == 0
    assert figures["durable = true: lost"].reached
    assert report.checks[0] == "2 kills each; seed 1"


def test_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(workers_module, "REST_SECONDS", 1.5)
    report = Workers(enroll=Enroll(drivers=1, at_once=4)).run(TINY, lambda text: None)
    assert [summary.name for summary in report.summaries] == ["one-worker", "two-workers", "two-servers"]
    assert all(summary.operations > 0 and not summary.failed for summary in report.summaries)
    figure, one, two, separate = report.figures
    assert separate.value > 0
    assert figure.at_least == 1.7
    assert [figure.value] == scaling(report.turns, {"one-worker": one.value, "two-workers": two.value})
    assert 0 < two.value < 1
    assert "computed from CPU time, not observed" in report.checks[1]


def worked(name: str, number: int, operations: int, server_cpu: float) -> Turn:
    return Turn(name, number, operations, 0, 10.0, server_cpu, 1.0, 10.0, 1.0, 1.0, apart=False)


def test_what_is_spent_at_rest_is_no_part_of_what_an_enrollment_costs() -> None:
    turn = worked("two-workers", 1, 1000, 3.0)
    assert throughput(turn, 2, 0.0) == pytest.approx(2 / 0.003)
    assert throughput(turn, 2, 0.1) == pytest.approx(1.9 / 0.002)


def test_two_workers_are_held_against_one_round_by_round() -> None:
    turns = [
        worked("one-worker", 1, 1000, 2.0),
        worked("two-workers", 1, 1000, 2.0),
        worked("one-worker", 2, 1000, 2.0),
        worked("two-workers", 2, 1000, 4.0),
    ]
    assert scaling(turns, {"one-worker": 0.0, "two-workers": 0.0}) == pytest.approx([2.0, 1.0])


@NEEDS_MOSQUITTO
@pytest.mark.parametrize(
    ("database", "where"),
    [("sqlite", "2 workers of one node"), pytest.param("postgres", "2 nodes", marks=NEEDS_POSTGRES)],
)
def test_revocation(database: str, where: str) -> None:
    report = Revocation().run(replace(TINY, sessions=6, database=database), lambda text: None)
    assert f"6 devices connected to {where}, each session alive until its device was revoked" in report.checks
    revoked, *times = report.figures
    assert revoked.value == 6
    assert [figure.name.rpartition(", ")[2] for figure in times] == ["p50", "p99", "max"]
    assert 0 < times[0].value <= times[1].value <= times[2].value
    assert [figure.at_most for figure in times] == [None, 10, None]


@pytest.mark.long
def test_forward_auth() -> None:
    report = ForwardAuth(devices=3).run(TINY, lambda text: None)
    answers, rate, *times = report.figures
    assert f"({answers.value:,.0f})" in report.checks[0]
    assert rate.value > 0
    assert [(figure.name, figure.at_most) for figure in times] == [("p50", 1.0), ("p99", None), ("max", None)]
    assert 0 < times[0].value <= times[1].value <= times[2].value


@pytest.mark.long
def test_ocsp() -> None:
    report = Ocsp(asked=50, hot=5).run(replace(TINY, devices=1000), lambda text: None)
    names = ["fleet, signed live", "fleet, kept answers", "openssl ocsp"]
    assert [summary.name for summary in report.summaries] == names
    assert all(summary.operations > 0 and not summary.failed for summary in report.summaries)
    assert [figure.name for figure in report.figures[1:]] == [
        f"{name}, {point}" for name in names for point in ("p50", "p99")
    ]
    assert [figure.at_most for figure in report.figures[1:]] == [None, 5.0, None, 5.0, None, None]


def test_crl() -> None:
    report = CrlCost(revoked=(300,)).run(TINY, lambda text: None)
    figures = {figure.name.removeprefix("300 revoked: "): figure.value for figure in report.figures}
    assert figures["entries"] == 300
    assert 300 * 30 < figures["full CRL"] * 1e6 < 300 * 60
    assert figures["one shard"] < 1


@pytest.mark.long  # a kept registry is the same run, twice
def test_a_large_registry_enrolls_and_answers_as_a_small_one() -> None:
    scenario = LargeRegistry(enroll=Enroll(drivers=1, at_once=4), lookups=200, pages=5)
    holds_for_a_registry(scenario.run(replace(TINY, devices=2000), lambda text: None), "sqlite", 2000)


def holds_for_a_registry(report: Report, database: str, devices: int) -> None:
    figures = {figure.name: figure for figure in report.figures}
    assert figures["devices"].value == devices
    disk = figures["disk a device, with its certificate and all indices"]
    assert 400 < disk.value < 3000  # a page or two of each index stands for few devices
    assert all(figure.value > 0 for figure in report.figures)
    assert {"admission look-up, p99", "enrollment, full beside empty"} <= set(figures)
    assert all(summary.operations > 0 and not summary.failed for summary in report.summaries)
    assert any(f"the registry is {database} on" in check for check in report.checks)
    text = "\n".join(lines(report))
    assert "goal: at least 0.85" in text


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgres", marks=NEEDS_POSTGRES)])
def test_a_kept_registry_is_measured_again_and_not_filled(database: str, tmp_path: Path) -> None:
    scenario = LargeRegistry(enroll=Enroll(drivers=1, at_once=4), lookups=50, pages=2)
    with tempfile.TemporaryDirectory(prefix="hw-keep-") as folder:  # short, and in what PostgreSQL's user may enter
        Path(folder).chmod(0o711)
        plan = replace(TINY, devices=1000, database=database, keep=Path(folder) / "kept")
        said: list[str] = []
        first, second = (scenario.run(plan, said.append) for _ in range(2))
        assert sum("1,000 of 1,000 devices" in line for line in said) == 1
        assert [figure.value for figure in second.figures[:3]] == [figure.value for figure in first.figures[:3]]
        for report in (first, second):
            holds_for_a_registry(report, database, 1000)
        with pytest.raises(BenchError, match=f"holds 1,000 devices in {database}, not 2,000 in {database}"):
            scenario.run(replace(plan, devices=2000), said.append)
        other = replace(plan, database="postgres" if database == "sqlite" else "sqlite")
        with pytest.raises(BenchError, match="holds 1,000 devices"):
            scenario.run(other, said.append)


def test_a_server_of_a_filled_registry_has_no_old_audit_to_seal(tmp_path: Path) -> None:
    home = SqliteEngine().home(tmp_path / "full")
    fleet = FilledFleet(1000, bytes(range(200)), datetime(2026, 11, 1, tzinfo=UTC))
    filled(home, fleet, lambda text: None)

    async def sizes() -> tuple[int, int]:
        registry = await open_registry(home.files)
        try:
            sealed = await registry.last_sealed()
            return await registry.last_audit(), sealed.head.size if sealed else 0
        finally:
            await registry.close()

    rows, sealed = asyncio.run(sizes())
    assert rows == sealed
    assert rows > fleet.count


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(BenchError, match=r"is not empty and holds no complete registry\. Choose a new folder"):
        LargeRegistry().run(replace(TINY, devices=1000, keep=tmp_path), lambda text: None)
    (tmp_path / "filled.json").write_text('{"engine": "sqlite"}')
    with pytest.raises(BenchError, match=r"filled\.json cannot be read: KeyError"):
        LargeRegistry().run(replace(TINY, devices=1000, keep=tmp_path), lambda text: None)
    with pytest.raises(BenchError, match="cannot be used"):
        LargeRegistry().run(replace(TINY, devices=1000, keep=tmp_path / "no" / "where"), lambda text: None)
    assert (tmp_path / "letter").read_text() == "dear"


def test_a_figure_and_its_goal() -> None:
    assert Figure("x", 3, "ms").reached
    assert Figure("x", 3, "ms", at_most=3).reached
    assert not Figure("x", 3.1, "ms", at_most=3).reached
    assert not Figure("x", 2, "ms", at_most=3, at_least=2.5).reached


def test_each_scenario_goes_by_its_name() -> None:
    assert {name: one.name for name, one in SCENARIOS.items()} == {name: name for name in SCENARIOS}
    assert list(SCENARIOS) == [
        "handshakes",
        "enroll",
        "workers",
        "publish",
        "fanin",
        "latency",
        "idle",
        "storm",
        "starve",
        "soak",
        "revocation",
        "forward-auth",
        "ocsp",
        "crl",
        "registry",
        "crash",
        "broker-crash",
        "fleet-year",
        "reconnect-storm",
    ]


def test_the_file_system_has_a_name() -> None:
    assert file_system(Path("/proc")) == "proc"
