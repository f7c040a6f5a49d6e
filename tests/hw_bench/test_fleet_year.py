"""The simulated fleet: what its model decides, that its year is survived, and that it would show who does not."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from xml.etree import ElementTree

import pytest

from device_agent.core import Setback
from device_agent.enrollment.enrollment import EnrollmentJob
from device_agent.store.identity_store import CertificateInfo
from hw_bench.processes import BenchError
from hw_bench.scenarios.fleet_year import FleetYear, Year
from hw_bench.simulation.authority import Authority, Outage, Refusal, Rules
from hw_bench.simulation.device import Board, ModelProcess, World
from hw_bench.turns import Plan

START = datetime(2027, 1, 1, tzinfo=UTC)
DAY = 86_400.0


def silent(_: str) -> None:
    pass


def test_one_key_gets_one_certificate_and_the_first_use_supersedes_its_predecessor() -> None:
    authority = Authority(Rules(), START)
    first = authority.issue("cam", b"k1", 0)
    second = authority.renew("cam", first.fingerprint, b"k2", 20 * DAY)
    assert second == authority.renew("cam", first.fingerprint, b"k2", 20 * DAY + 60)
    assert isinstance(second, CertificateInfo)
    assert len(authority.issued_at) == 2
    assert authority.setback("cam", first.fingerprint, 21 * DAY) is None
    authority.begins("cam", second.fingerprint)
    assert authority.setback("cam", first.fingerprint, 21 * DAY) is Setback.REFUSED
    assert authority.setback("cam", second.fingerprint, 21 * DAY) is None
    refused = authority.renew("cam", first.fingerprint, b"k3", 21 * DAY)
    assert isinstance(refused, Refusal)
    assert refused.ended


def test_expired_revoked_and_too_many_are_refused_each_in_its_way() -> None:
    rules = Rules(grace=timedelta(days=5), issued_per_minute_max=1, outages=(Outage(10.0, 20.0, est_only=True),))
    authority = Authority(rules, START)
    first = authority.issue("cam", b"k1", 0)
    assert authority.setback("cam", first.fingerprint, 15) is None
    assert not authority.answers(15, est=True)
    assert authority.setback("cam", first.fingerprint, 31 * DAY) is Setback.REFUSED
    assert isinstance(authority.renew("cam", first.fingerprint, b"k2", 31 * DAY), CertificateInfo)
    busy = authority.renew("cam", first.fingerprint, b"k3", 31 * DAY)
    assert busy == Refusal("too-many-requests", "The server is busy.", retry_after_seconds=rules.retry_after_seconds)
    late = authority.renew("cam", first.fingerprint, b"k3", 36 * DAY)
    assert isinstance(late, Refusal)
    assert late.ended
    authority.account("cam").revoked = True
    assert authority.setback("cam", first.fingerprint, 1 * DAY) is Setback.ENDED


def test_a_clock_that_is_not_set_takes_the_time_of_the_first_answer(tmp_path: Path) -> None:
    """As the agent's does: tests/device_agent/link/test_est_access.py."""
    world = World(Authority(Rules(), START))
    world.now = 9 * DAY
    board = Board("cam", tmp_path, world, Random(1))
    board.forget_time()
    assert not board.device_clock().reading().is_set
    process = ModelProcess(board, EnrollmentJob(tmp_path, "window"))
    world.now = process.ends_at
    assert process.read() is not None
    assert board.device_clock().now() == world.authority.time(world.now)


def test_a_year_is_survived_by_every_device_and_drawn(tmp_path: Path) -> None:
    picture = tmp_path / "renewals.svg"
    report = FleetYear(devices=3, days=8).run(Plan(seed=3, picture=picture), silent)
    figures = {one.name: one for one in report.figures}
    assert figures["devices that did not come back"].value == 0
    assert figures["revoked devices that are connected"].value == 0
    assert figures["renewed certificates a device"].reached, figures
    assert ElementTree.fromstring(picture.read_bytes()).tag.endswith("svg")  # noqa: S314


@pytest.mark.long
def test_the_same_seed_is_the_same_year(tmp_path: Path) -> None:
    years = []
    for name in ("a", "b"):
        year = Year(tmp_path / name, 1, 2, Random(11))
        year.run(silent)
        years.append((year.authority.issued_at, year.turns, [one.connected_seconds for one in year.devices]))
    assert years[0] == years[1]


def test_a_device_that_does_not_come_back_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hw_bench.simulation.device.NEW_ROOT", "a root that nobody uses")
    with pytest.raises(BenchError, match="did not come back"):
        FleetYear(devices=2, days=4).run(Plan(seed=3), silent)


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_whole_years(seed: int) -> None:
    report = FleetYear(devices=20).run(Plan(seed=seed), silent)
    assert all(one.reached for one in report.figures), report.figures
