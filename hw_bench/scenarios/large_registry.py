"""What a registry full of devices costs: look-ups, listings, disk, and enrollment beside an empty one."""

import asyncio
import contextlib
import hashlib
import random
import secrets
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fleet.ca.keys import generate_key
from fleet.domain.credential import CredentialKind
from fleet.domain.device import DeviceFilter, DeviceState, Place
from fleet.domain.enrollment import IssuePermit
from fleet.domain.peer import Peer
from fleet.domain.ports import Registry
from fleet.home.layout import open_registry, place_of_registry
from fleet.home.pki import audit_signer, load_issuer
from fleet.services.admission import admit
from fleet.services.sealing import seal
from hw_bench.drivers.fill import SUSPENDED_EVERY, FilledFleet, OnCount, Sizes, fill
from hw_bench.drivers.fill_postgres import fill_postgres
from hw_bench.peers.contract import Environment
from hw_bench.peers.engine import Engine, engine_of
from hw_bench.peers.fleet_tls import version
from hw_bench.peers.home import FleetHome, serve
from hw_bench.processes import on_cores
from hw_bench.report import Figure, Report
from hw_bench.scenarios.contract import Findings, conclude, file_system, new_environment
from hw_bench.scenarios.enroll import Enroll, token_login
from hw_bench.scenarios.saved_registry import SavedRegistry
from hw_bench.turns import Contender, Plan, Progress, take_turns

PAGE_SIZE = 100
SEED = 7  # the same devices in every run
FULL, EMPTY = "full", "empty"
LOOKUP_MS_MAX = 2.0
PAGE_MS_MAX = 20.0
DISK_MAX = 1.2 * 1024
ENROLLMENT_MIN = 0.85


@dataclass(frozen=True, slots=True)
class LargeRegistry:
    """A registry with many devices, beside an empty one."""

    name: str = "registry"
    enroll: Enroll = field(default_factory=Enroll)
    lookups: int = 20_000
    pages: int = 200
    """Of each filter."""

    def description(self) -> str:
        return (
            "a registry of --devices devices: admission look-ups, pages of listings, disk, and enrollments by token "
            "beside an empty registry"
        )

    def run(self, plan: Plan, progress: Progress) -> Report:
        with contextlib.ExitStack() as stack:
            environment = stack.enter_context(new_environment())
            kept = SavedRegistry(plan.keep or environment.folder / "filled")
            engine = engine_of(plan.database, kept.engine if plan.keep else None)
            found = kept.begin(engine.name, plan.devices)
            stack.callback(engine.stop)
            with on_cores(*environment.server_cores):  # it is a part of the server
                engine.start()
            full = FleetHome(kept.home) if found else engine.home(kept.home)
            homes = {FULL: full, EMPTY: engine.home(environment.folder / EMPTY)}
            if found:
                fleet, sizes = found
            else:
                fleet = FilledFleet(plan.devices, device_certificate(full), datetime.now(UTC).replace(microsecond=0))
                sizes = filled(full, fleet, progress)
                kept.done(engine.name, fleet, sizes)
            progress("looking up and listing")
            figures = asyncio.run(self._asked(homes[FULL], fleet))
            contenders = [self._contender(name, home, engine, environment, stack) for name, home in homes.items()]
            turns = take_turns(contenders, plan, environment.cores, progress)
            findings = Findings(
                "enrollments",
                environment.cores,
                dict.fromkeys(homes, version()),
                pairs=((FULL, EMPTY),),
                ratios_by=("per_core",),
                checks=(f"the registry is {engine.name} on {file_system(environment.folder)}",),
            )
            report = conclude(self, plan, turns, findings)
        disk, audit = sizes.devices / plan.devices, sizes.audit / plan.devices
        beside_empty = report.ratios[0].spread.median
        return replace(
            report,
            figures=(
                Figure("devices", plan.devices, ""),
                Figure("disk a device, with its certificate and all indices", disk, "octets", at_most=DISK_MAX),
                Figure("disk of the audit row of its enrollment", audit, "octets"),
                *figures,
                Figure("enrollment, full beside empty", beside_empty, "x", at_least=ENROLLMENT_MIN),
            ),
        )

    def _contender(
        self, name: str, home: FleetHome, engine: Engine, environment: Environment, stack: contextlib.ExitStack
    ) -> Contender:
        ids = f"{name}-{secrets.token_hex(4)}"  # a kept registry has those of earlier runs
        pool = stack.enter_context(self.enroll.pool(ids, token_login(home), environment))
        served = stack.enter_context(serve(home, environment))
        return self.enroll.contender(pool, served.with_others(engine.pids).est_server(name))

    async def _asked(self, home: FleetHome, fleet: FilledFleet) -> tuple[Figure, ...]:
        registry = await open_registry(home.files)
        chance = random.Random(SEED)  # noqa: S311  which devices are looked at
        try:
            figures = [await self._admissions(registry, fleet, chance)]
            for name, where in _filters(fleet, chance).items():
                times = [await _timed(_page(registry, fleet, where, chance)) for _ in range(self.pages)]
                title = f"page of {PAGE_SIZE} devices by {name}, p99"
                figures.append(Figure(title, _percentile_99(times), "ms", at_most=PAGE_MS_MAX))
        finally:
            await registry.close()
        return tuple(figures)

    async def _admissions(self, registry: Registry, fleet: FilledFleet, chance: random.Random) -> Figure:
        """Duration from a certificate's fingerprint to the decision on its MQTT session, one at a time."""
        times: list[float] = []
        while len(times) < self.lookups:
            number = chance.randrange(fleet.count)
            if number % SUSPENDED_EVERY == 0:
                continue  # suspended devices are refused
            peer = Peer("192.0.2.7", fingerprint=fleet.fingerprint(number))
            now = fleet.expires_at(number) - timedelta(days=1)
            times.append(await _timed(partial(admit, registry, peer, fleet.device_id(number), now)))
        return Figure("admission look-up, p99", _percentile_99(times), "ms", at_most=LOOKUP_MS_MAX)


def filled(home: FleetHome, fleet: FilledFleet, progress: Progress) -> Sizes:
    """Write `fleet` into the home's registry and seal its audit: otherwise the server would seal all of it while it is
    measured. Raises: sqlite3.Error, asyncpg.PostgresError, OSError, FleetError.
    """
    began = time.monotonic()

    def on_count(count: int) -> None:
        if count % 500_000 == 0 or count == fleet.count:
            progress(f"{count:,} of {fleet.count:,} devices, {time.monotonic() - began:.0f} s")

    sizes = _fill(home, fleet, on_count)
    progress("sealing the audit")
    asyncio.run(_seal(home))
    return sizes


def _fill(home: FleetHome, fleet: FilledFleet, on_count: OnCount) -> Sizes:
    place = place_of_registry(home.files)
    return (
        fill(place, fleet, on_count) if isinstance(place, Path) else asyncio.run(fill_postgres(place, fleet, on_count))
    )


async def _seal(home: FleetHome) -> None:
    registry = await open_registry(home.files)
    try:
        await seal(registry, audit_signer(home.files), datetime.now(UTC))
    finally:
        await registry.close()


def device_certificate(home: FleetHome) -> bytes:
    """A device certificate issued by the home's CA."""
    now = datetime.now(UTC)
    spki = generate_key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    permit = IssuePermit(
        kind=CredentialKind.DEVICE,
        holder="dev-00000000",
        hardware_serial="",
        spki_der=spki,
        key_sha256=hashlib.sha256(spki).digest(),
        not_before=now,
        not_after=now + timedelta(days=90),
        grant="token 0123456789ab",
    )
    return load_issuer(home.files).issue(permit, now).der


Where = Callable[[], DeviceFilter]


def _filters(fleet: FilledFleet, chance: random.Random) -> dict[str, Where]:
    """Each filter of a listing, by name; each call selects different devices."""

    def any_number() -> int:
        return chance.randrange(fleet.count)

    return {
        "no filter": DeviceFilter,
        "model": lambda: DeviceFilter(model=fleet.model(any_number())),
        "state active": lambda: DeviceFilter(state=DeviceState.ACTIVE),
        "state suspended": lambda: DeviceFilter(state=DeviceState.SUSPENDED),
        "tag": lambda: DeviceFilter(tags=(("lot", fleet.lot(any_number())),)),
        "group": lambda: DeviceFilter(group="pilot"),
        "expires_before": lambda: DeviceFilter(expires_before=fleet.expires_at(fleet.count)),
    }


def _page(
    registry: Registry, fleet: FilledFleet, where: Where, chance: random.Random
) -> Callable[[], Awaitable[object]]:
    """A page from a random position of the listing."""
    meant, number = where(), chance.randrange(fleet.count)
    after = Place(fleet.device_id(number))
    if meant.expires_before is not None:
        after = Place(fleet.device_id(number), fleet.expires_at(number))
    return lambda: registry.devices(meant, after=after, limit=PAGE_SIZE)


async def _timed(ask: Callable[[], Awaitable[object]]) -> float:
    """Duration of `ask` in milliseconds."""
    began = time.perf_counter()
    await ask()
    return (time.perf_counter() - began) * 1000


def _percentile_99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[98]
