"""What CRLs cost: sizes and times of full and sharded ones, and of one revocation, with so many certificates revoked.

The publisher works in this process, at a home's registry on SQLite; rows of the revoked stand in it as it writes them.
"""

import asyncio
import contextlib
import os
import sqlite3
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from fleet.ca.crl import crl_entry, make_entries
from fleet.domain.access import Act
from fleet.domain.crl import CrlHead, Revocation
from fleet.domain.distribution import bucket_of, full_crl_path, shard_crl_path
from fleet.domain.ports import Registry
from fleet.home.home_cas import crl_authorities
from fleet.home.layout import Home, open_home, open_registry
from fleet.services.crl_publishing import CrlCa, CrlPolicy, CrlPublisher
from fleet.services.revocation import revoke
from hw_bench.peers.contract import Environment
from hw_bench.peers.home import enroll_devices, make_home, serve
from hw_bench.report import Figure, Report
from hw_bench.scenarios.contract import file_system, new_environment
from hw_bench.turns import Plan, Progress, machine

SHARDS = 128
URL = "http://pki.example"
REVOCATIONS = 5
ROWS_AT_ONCE = 10_000
INSERT = """INSERT INTO revoked (serial, not_after, revoked_at, reason, issuer, bucket, entry, number)
    VALUES (?, ?, ?, 0, ?, ?, ?, 1)"""
LIFE = timedelta(days=90)


@dataclass(frozen=True, slots=True)
class CrlCost:
    """`revoked`: how many certificates are revoked, one size after the other."""

    name: str = "crl"
    revoked: tuple[int, ...] = (10_000, 100_000, 1_000_000)

    def description(self) -> str:
        counts = ", ".join(f"{count:,}" for count in self.revoked)
        return f"sizes and times of CRLs, full and in {SHARDS} shards, and of one revocation, with {counts} revoked"

    def run(self, plan: Plan, progress: Progress) -> Report:
        with contextlib.ExitStack() as stack:
            environment = stack.enter_context(new_environment())
            names = _enrolled(environment, REVOCATIONS * len(self.revoked) * 2, progress)
            home = open_home(environment.folder / "home")
            figures: list[Figure] = []
            for count in self.revoked:
                progress(f"{count:,} revoked")
                figures += asyncio.run(_measured(home, count, names))
            checks = (f"the registry is sqlite on {file_system(environment.folder)}",)
        return Report(
            self.name,
            self.description(),
            "CRLs",
            plan.seconds,
            1,
            machine(environment.cores),
            (),
            (),
            (),
            (),
            checks=checks,
            figures=tuple(figures),
        )


def _enrolled(environment: Environment, count: int, progress: Progress) -> Iterator[str]:
    home = make_home(environment)
    progress(f"enrolling {count} devices")
    with serve(home, environment) as served:
        devices = enroll_devices(home, served, environment, count)
    return iter([device.name for device in devices])


async def _measured(home: Home, count: int, names: Iterator[str]) -> list[Figure]:
    now = datetime.now(UTC)
    issuing = next(ca for ca in crl_authorities(home) if ca.is_sharded)
    _fill(home, issuing, count, now)
    registry = await open_registry(home)
    try:
        stage = _Stage(registry, home, issuing)
        whole, heads = await stage.timed(CrlPolicy(URL), at_once=True)
        size = await stage.size(full_crl_path(issuing.name))
        found = [
            _figure(count, "full CRL made in", whole, "s"),
            _figure(count, "full CRL", size / 1e6, "MB"),
            _figure(count, "entries", heads[0].entries, ""),
        ]
        found.append(_figure(count, "one revocation, full CRL", await stage.revocation(CrlPolicy(URL), names), "ms"))
        sharded = CrlPolicy(URL, SHARDS)
        all_shards, _ = await stage.timed(sharded, at_once=True)
        size = await stage.size(shard_crl_path(issuing.name, 1, SHARDS))
        found += [
            _figure(count, f"{SHARDS} shards and full CRL made in", all_shards, "s"),
            _figure(count, "one shard", size / 1e3, "kB"),
            _figure(count, f"one revocation, {SHARDS} shards", await stage.revocation(sharded, names), "ms"),
        ]
        return found
    finally:
        await registry.close()


def _figure(count: int, name: str, value: float, unit: str) -> Figure:
    return Figure(f"{count:,} revoked: {name}", value, unit)


def _fill(home: Home, ca: CrlCa, count: int, now: datetime) -> None:
    """Rows of `count` revoked certificates of `ca`, in place of those that are there; no CRL."""
    with contextlib.closing(sqlite3.connect(home.registry)) as db:
        db.execute("DELETE FROM revoked")
        db.execute("DELETE FROM crl")
        db.execute("DELETE FROM lease")
        for start in range(0, count, ROWS_AT_ONCE):
            serials = [os.urandom(19) for _ in range(min(ROWS_AT_ONCE, count - start))]
            db.executemany(INSERT, [_row(ca, s, now) for s in serials])
        db.commit()


def _row(ca: CrlCa, serial: bytes, now: datetime) -> tuple[object, ...]:
    number = int.from_bytes(serial)
    revocation = Revocation(f"{number:x}", now + LIFE, now, 0)
    ends, at = (int(when.timestamp()) * 1_000_000 for when in (revocation.not_after, now))
    return serial.lstrip(b"\0"), ends, at, ca.key_identifier, bucket_of(number), crl_entry(revocation)


@dataclass(slots=True)
class _Stage:
    registry: Registry
    home: Home
    ca: CrlCa

    async def timed(self, policy: CrlPolicy, *, at_once: bool = False) -> tuple[float, list[CrlHead]]:
        """Seconds of one round, and what it published."""
        publisher = CrlPublisher(self.registry, policy, "bench", make_entries)
        began = time.perf_counter()
        made = await publisher.publish_due([self.ca], datetime.now(UTC), at_once=at_once)
        seconds = time.perf_counter() - began
        await publisher.release(datetime.now(UTC))
        return seconds, made

    async def revocation(self, policy: CrlPolicy, names: Iterator[str]) -> float:
        """Milliseconds of a round after one revocation: the median. With shards, the full CRL waits for its turn."""
        full_at = -1.0 if policy.shards > 1 else 0.0
        publisher = CrlPublisher(self.registry, policy, "bench", make_entries, lambda: full_at)
        times: list[float] = []
        for _ in range(REVOCATIONS):
            now = datetime.now(UTC)
            await revoke(self.registry, next(names), act=Act("bench", now))
            began = time.perf_counter()
            assert await publisher.publish_due([self.ca], now)  # noqa: S101
            times.append((time.perf_counter() - began) * 1000)
        await publisher.release(datetime.now(UTC))
        return statistics.median(times)

    async def size(self, path: str) -> int:
        crl = await self.registry.crl(path)
        assert crl is not None  # noqa: S101
        return len(crl.der)
