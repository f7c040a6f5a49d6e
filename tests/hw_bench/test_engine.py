"""Each engine: a home on it, and the registry after its processes were killed."""

import asyncio
import os
import random
import select
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fleet.domain.access import Act
from fleet.domain.device import Model
from fleet.home.layout import open_registry
from fleet.services.inventory import add_model
from hw_bench.cpu_time import process_tree
from hw_bench.peers import postgres
from hw_bench.peers.engine import POSTGRES, SQLITE, Engine, PostgresEngine, engine_of
from hw_bench.peers.home import FleetHome
from hw_bench.processes import BenchError
from tests.hw_bench.needs import NEEDS_POSTGRES

pytestmark = pytest.mark.usefixtures("forked_programs")
NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(params=[SQLITE, pytest.param(POSTGRES, marks=NEEDS_POSTGRES)])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    found = engine_of(request.param)
    try:
        found.start()
        yield found
    finally:
        found.stop()


async def add(home: FleetHome, name: str) -> None:
    registry = await open_registry(home.files)
    try:
        await add_model(registry, Model(name), act=Act("operator", NOW))
    finally:
        await registry.close()


async def models(home: FleetHome) -> set[str]:
    registry = await open_registry(home.files)
    try:
        return {model.name for model in await registry.models()}
    finally:
        await registry.close()


def test_what_was_committed_outlives_a_kill(engine: Engine, tmp_path: Path) -> None:
    home = engine.home(tmp_path / "home")
    asyncio.run(add(home, "before"))
    engine.kill()
    engine.start()
    assert asyncio.run(models(home)) == {"default", "before"}
    chance = random.Random(3)
    assert engine.kill_one(chance) is (engine.name == POSTGRES)


def test_each_home_has_a_registry_of_its_own(engine: Engine, tmp_path: Path) -> None:
    first, second = engine.home(tmp_path / "first"), engine.home(tmp_path / "second")
    asyncio.run(add(first, "only-here"))
    assert asyncio.run(models(second)) == {"default"}


@NEEDS_POSTGRES
def test_postgres_is_durable_and_gone_at_the_end() -> None:
    engine = PostgresEngine()
    try:
        engine.start()
        cluster, family = engine.cluster, [os.pidfd_open(pid) for pid in process_tree(engine.pids)]
        assert len(family) > 1
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            assert cluster.run(f"SHOW {setting}") == "on"
    finally:
        engine.stop()
    assert select.select(family, [], [], 0)[0] == family
    for handle in family:
        os.close(handle)
    assert not cluster.folder.exists()


@NEEDS_POSTGRES
def test_a_cluster_that_cannot_be_made_says_why() -> None:
    binaries = postgres.programs()
    assert binaries
    with postgres.new_folder() as folder:
        cluster = postgres.Cluster(binaries, folder, ())
        cluster.data.mkdir()
        (cluster.data / "other").touch()
        with pytest.raises(BenchError, match=r"creating a PostgreSQL cluster (?s:.)* exists but is not empty"):
            cluster.make()


def test_an_engine_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "programs", lambda: None)
    with pytest.raises(BenchError, match="PostgreSQL 15 or newer is not installed"):
        engine_of(POSTGRES).start()


def test_no_engine_goes_by_another_name() -> None:
    with pytest.raises(BenchError, match="choose sqlite or postgres"):
        engine_of("oracle")
