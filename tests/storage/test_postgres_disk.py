"""Indices that hold hashes instead of values: what they must keep, and a registry from before them."""

import asyncio

import asyncpg
import pytest
from msgspec.structs import replace

from fleet.config.database_url import DatabaseUrl, parse_database_url
from fleet.domain.credential import Credential
from fleet.domain.device import DeviceFilter, DeviceId
from fleet.domain.errors import Conflict
from fleet.domain.writes import AddCredential, Insert, TagDevice
from fleet.storage import mapping
from fleet.storage.postgres import migrations as postgres_schema
from fleet.storage.postgres.registry import PostgresRegistry
from fleet.storage.postgres.session import SCHEMA
from tests.postgres_server import PostgresServer
from tests.storage.samples import COLUMNS_BEFORE_BUDGETS, MODEL, change, credential, device, row_before_budgets
from tests.waiting import PATIENCE_SECONDS

BEFORE = next(n for n, sql in postgres_schema.migrations() if "EXCLUDE USING hash" in sql) - 1
CONSTRAINTS = """
    SELECT conrelid::regclass::text, conname, CASE WHEN contype IN ('c', 'f') THEN pg_get_constraintdef(oid) END
    FROM pg_constraint WHERE connamespace = 'fleet'::regnamespace ORDER BY 1, 2"""
INSERT = f"""
    INSERT INTO credential ({mapping.CREDENTIAL.listed()})
    VALUES ({", ".join(f"${n}" for n in range(1, len(mapping.CREDENTIAL.columns) + 1))})"""  # noqa: S608
COLUMNS = """
    SELECT table_name, column_name, data_type, collation_name, is_nullable, is_identity FROM information_schema.columns
    WHERE table_schema = 'fleet' AND table_name IN ('credential', 'device', 'device_tag')"""


async def session(url: DatabaseUrl) -> asyncpg.Connection:
    return await asyncpg.connect(url.dsn, server_settings={"search_path": SCHEMA})


async def test_two_sessions_cannot_both_have_a_fingerprint_or_a_serial(postgres_url: DatabaseUrl) -> None:
    """Without the locks of our own writer: the database itself refuses."""
    one, other = await session(postgres_url), await session(postgres_url)
    try:
        first = credential("cam-1")
        for clash, constraint in (
            (replace(credential("cam-2"), fingerprint=first.fingerprint), "credential_fingerprint_key"),
            (replace(credential("cam-2"), serial=first.serial), "credential_serial_key"),
        ):
            begun = one.transaction()
            await begun.start()
            await one.execute(INSERT, *mapping.CREDENTIAL.row(first))
            second = asyncio.create_task(other.execute(INSERT, *mapping.CREDENTIAL.row(clash)))
            # It waits for the first's end: neither of them knows yet who has it.
            assert await asyncio.wait_for(_waits(postgres_url), PATIENCE_SECONDS)
            assert not second.done()
            await begun.commit()
            with pytest.raises(asyncpg.ExclusionViolationError, match=constraint):
                await second
            # What was rolled back was never had.
            await one.execute("DELETE FROM credential")
            begun = one.transaction()
            await begun.start()
            await one.execute(INSERT, *mapping.CREDENTIAL.row(first))
            second = asyncio.create_task(other.execute(INSERT, *mapping.CREDENTIAL.row(clash)))
            assert await asyncio.wait_for(_waits(postgres_url), PATIENCE_SECONDS)
            await begun.rollback()
            assert await second == "INSERT 0 1"
            await one.execute("DELETE FROM credential")
    finally:
        await one.close()
        await other.close()


async def _waits(url: DatabaseUrl) -> bool:
    """True as soon as a session of this database waits for another's transaction."""
    looking = await session(url)
    try:
        waiting = """
            SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'"""
        while not await looking.fetchval(waiting):  # noqa: ASYNC110  it happens in the server
            await asyncio.sleep(0.01)
        return True
    finally:
        await looking.close()


async def test_of_two_registries_one_records_a_serial(postgres_url: DatabaseUrl) -> None:
    registries = [await PostgresRegistry.open(postgres_url) for _ in range(2)]
    try:
        for n in range(20):
            both = [credential(f"cam-{n}-{which}", serial=f"abc{n:x}") for which in range(2)]
            done = await asyncio.gather(
                *(r.commit(change(AddCredential(c))) for r, c in zip(registries, both, strict=True)),
                return_exceptions=True,
            )
            refused = [outcome for outcome in done if isinstance(outcome, BaseException)]
            assert len(refused) == 1
            assert isinstance(refused[0], Conflict)
            assert refused[0].code == "credential-exists"
            assert (await registries[0].credential(f"abc{n:x}")) in both
    finally:
        for registry in registries:
            await registry.close()


async def fill(writing: asyncpg.Connection, held: list[Credential]) -> None:
    """A model, a hundred devices with tags, and `held`, as the schema of before has them."""
    tagged = [replace(device(f"cam-{n}"), tags=(("lot", f"L{n % 3}"),), groups=("pilot é 😀",)) for n in range(100)]
    await writing.execute(
        "INSERT INTO model (name, lifetime, key_types, publish, subscribe, retain, revision)"
        " VALUES ('cam2', 1, '[]', '[]', '[]', 0, 1)"
    )
    await writing.copy_records_to_table(
        "device", schema_name=SCHEMA, columns=COLUMNS_BEFORE_BUDGETS, records=map(row_before_budgets, tagged)
    )
    await writing.copy_records_to_table(
        "device_tag",
        schema_name=SCHEMA,
        columns=("key", "value", "device_id"),
        records=[row for one in tagged for row in mapping.tag_rows(one)],
    )
    await writing.copy_records_to_table(
        "credential", schema_name=SCHEMA, columns=mapping.CREDENTIAL.columns, records=map(mapping.CREDENTIAL.row, held)
    )


async def test_a_filled_registry_from_before_is_brought_over(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = parse_database_url(postgres_server.url(postgres_server.make_database()))
    every = postgres_schema.migrations()
    monkeypatch.setattr(postgres_schema, "migrations", lambda: every[:BEFORE])
    old = await PostgresRegistry.open(url)
    await old.close()
    held = [credential(f"cam-{n % 100}") for n in range(300)]
    writing = await session(url)
    await fill(writing, held)
    # The newest of all is forgotten: its place in the order is not given away again.
    await writing.execute("DELETE FROM credential WHERE fingerprint = $1", held.pop().fingerprint)
    seqs = await writing.fetch("SELECT seq, fingerprint FROM credential ORDER BY seq")
    columns_before = sorted(map(tuple, await writing.fetch(COLUMNS)))
    constraints_before = await writing.fetch(CONSTRAINTS)
    monkeypatch.setattr(postgres_schema, "migrations", lambda: every[: BEFORE + 1])
    await (await PostgresRegistry.open(url, create=False)).close()
    assert sorted(map(tuple, await writing.fetch(COLUMNS))) == columns_before
    monkeypatch.setattr(postgres_schema, "migrations", lambda: every)
    new = await PostgresRegistry.open(url, create=False)
    try:
        assert {*columns_before} <= {*map(tuple, await writing.fetch(COLUMNS))}, "later migrations only add"
        # By the same names, for later migrations to change them by.
        assert {*map(tuple, constraints_before)} <= {*map(tuple, await writing.fetch(CONSTRAINTS))}
        assert await writing.fetch("SELECT seq, fingerprint FROM credential ORDER BY seq") == seqs
        for n in range(100):
            assert await new.credentials(f"cam-{n}") == held[n::100]
        for one in held:
            assert await new.credential(one.serial) == one
            facts = await new.holder_facts(one.fingerprint)
            assert facts is not None
            assert facts.credential == one
            used = await new.enrollment_facts(one.holder, "", one.key_sha256)
            assert [use.holder for use in used.key_uses] == [one.holder]
            assert len(used.credentials) == (2 if one.holder == "cam-99" else 3)
        assert len(await new.devices(DeviceFilter(tags=(("lot", "L1"),)))) == 33
        # What was had is still had, and what is added goes behind it.
        for clash in (replace(credential("cam-1"), serial=held[0].serial), held[0]):
            with pytest.raises(Conflict) as caught:
                await new.commit(change(AddCredential(clash)))
            assert caught.value.code == "credential-exists"
        latest = credential("cam-0")
        await new.commit(change(AddCredential(latest)))
        assert (await new.credentials("cam-0"))[-1] == latest
        assert await writing.fetchval("SELECT max(seq) FROM credential") > seqs[-1]["seq"] + 1
        for column, wrong in (
            ("fingerprint", b"short"),
            ("serial", b""),
            ("kind", "stranger"),
            ("key_sha256", b"short"),
            ("state", "lost"),
        ):
            with pytest.raises(asyncpg.CheckViolationError, match=f"credential_{column}_check"):
                await writing.execute(f"UPDATE credential SET {column} = $1 WHERE holder = 'cam-0'", wrong)  # noqa: S608
    finally:
        await new.close()
        await writing.close()


async def test_tags_of_any_text_leave_with_their_device_alone(postgres_url: DatabaseUrl) -> None:
    """They are found by the JSON in the device's row."""
    registry = await PostgresRegistry.open(postgres_url)
    looking = await session(postgres_url)
    try:
        await registry.commit(change(Insert(MODEL)))
        odd = (("lot", 'quote " and \\'), ("é", "😀 \n\t"), ("", "a key that a group has"))
        for id_ in ("cam-1", "cam-2"):
            await registry.commit(change(Insert(replace(device(id_), tags=odd, groups=("pilot", "[]")))))
        await registry.commit(change(TagDevice(DeviceId("cam-1"), (("lot", "L2"),), (), 1)))
        found = await looking.fetch("SELECT key, value FROM device_tag WHERE device_id = 'cam-1'")
        assert [tuple(row) for row in found] == [("lot", "L2")]
        assert await looking.fetchval("SELECT count(*) FROM device_tag WHERE device_id = 'cam-2'") == 5
        # One who comes too late changes nothing.
        with pytest.raises(Conflict):
            await registry.commit(change(TagDevice(DeviceId("cam-2"), (), (), 7)))
        assert await looking.fetchval("SELECT count(*) FROM device_tag WHERE device_id = 'cam-2'") == 5
    finally:
        await registry.close()
        await looking.close()
