"""A registry that has gone back to an older state, and on from there, gets its revocations back from the journal."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.domain.access import Act
from fleet.domain.changes import Event, EventKind
from fleet.domain.device import DeviceState
from fleet.domain.distrust import Distrust, rule_text
from fleet.domain.errors import Conflict, Refused
from fleet.domain.ports import Registry
from fleet.runtime.jobs import revocation_journal as job
from fleet.services import distrust, inventory, revocation
from fleet.services import revocation_journal as service
from fleet.services.revocation_journal import catch_up, has_gone_back, write_back
from fleet.storage.journals.revocation_reading import read_segments, revocations_in
from fleet.storage.journals.revocations import Mark, RevocationJournal, new_lineage

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ACT = Act("operator bob", NOW)
DEADLINE_SECONDS = 120.0


def journal(tmp_path: Path) -> RevocationJournal:
    return RevocationJournal(tmp_path / "state" / "revocations.jsonl", "ab" * 32)


async def with_a_forgotten_revocation(registry: Registry, log: RevocationJournal, name: str = "cam-1") -> None:
    """The registry has `name` and two events more than the journal's last, which says that `name` was revoked."""
    for each in ("cam-1", "cam-2"):
        await inventory.add_device(registry, each, "cam2", act=ACT)
    await revocation.suspend(registry, "cam-2", act=ACT)
    await catch_up(registry, log)
    newest = await registry.last_event()
    await asyncio.to_thread(log.note, [Event(EventKind.DEVICE_STATE, name, "revoked", newest + 1)])
    assert await has_gone_back(registry, log)
    await revocation.resume(registry, "cam-2", act=ACT)


async def state_of(registry: Registry, name: str) -> DeviceState | None:
    device = await registry.device(name)
    return device.state if device is not None else None


async def test_what_the_journal_alone_has_is_written_back(registry: Registry, tmp_path: Path) -> None:
    log = journal(tmp_path)
    await with_a_forgotten_revocation(registry, log)
    assert await state_of(registry, "cam-1") is DeviceState.REGISTERED
    assert await catch_up(registry, log) == await registry.last_event()
    assert await state_of(registry, "cam-1") is DeviceState.REVOKED
    assert await state_of(registry, "cam-2") is DeviceState.REGISTERED  # its resumption came later
    entry = (await registry.audit())[-1].entry
    assert (entry.actor, entry.action, entry.subject) == ("revocation journal", "device.revoke", "device cam-1")
    first, second = await asyncio.to_thread(read_segments, log.path)
    assert first.lineage != second.lineage
    assert [(each.subject, each.detail) for each in second.events][-2:] == [
        ("cam-1", "revoked"),
        ("cam-1", ""),
    ]
    assert not await has_gone_back(registry, log)
    rows = await registry.last_audit()
    await catch_up(registry, log)
    assert await registry.last_audit() == rows


async def test_a_device_that_the_registry_never_heard_of_is_barred(registry: Registry, tmp_path: Path) -> None:
    log = journal(tmp_path)
    await with_a_forgotten_revocation(registry, log, "cam-77")
    await catch_up(registry, log)
    assert await state_of(registry, "cam-77") is DeviceState.REVOKED


async def test_from_before_the_last_restore_everything_is_written_back(registry: Registry, tmp_path: Path) -> None:
    log = journal(tmp_path)
    await with_a_forgotten_revocation(registry, log)
    newest = await registry.last_event()
    await asyncio.to_thread(log.reset, Mark(new_lineage(), newest + 50))
    await asyncio.to_thread(log.note, [Event(EventKind.DEVICE_STATE, "cam-2", "revoked", newest + 51)])
    with pytest.raises(Refused):  # an older registry: a restore is the way
        await catch_up(registry, log)
    await write_back(registry, log, NOW)
    assert [await state_of(registry, name) for name in ("cam-1", "cam-2")] == [DeviceState.REVOKED] * 2
    assert await catch_up(registry, log) == await registry.last_event()


async def test_a_distrust_that_was_lost_is_made_again_unless_it_was_undone(registry: Registry, tmp_path: Path) -> None:
    log = journal(tmp_path)
    await with_a_forgotten_revocation(registry, log)
    newest = await registry.last_event()
    rules = [Distrust(f"{number:012x}", NOW, NOW, "cam2", spread=timedelta(hours=1)) for number in range(3)]
    lost = [Event(EventKind.DISTRUST_CHANGED, rule.id, rule_text(rule), newest + n) for n, rule in enumerate(rules, 9)]
    lost.append(Event(EventKind.DISTRUST_CHANGED, rules[0].id, "", newest + 12))
    await asyncio.to_thread(log.note, lost)
    await distrust.begin(registry, rules[1], act=ACT)
    await write_back(registry, log, NOW)
    kept, made = await registry.distrusts()
    assert kept == rules[1]
    assert replace(made, created_by="", reason="") == rules[2]


async def test_a_distrust_that_is_made_again_covers_what_was_issued_meanwhile(
    registry: Registry, tmp_path: Path
) -> None:
    log, hour = journal(tmp_path), timedelta(hours=1)
    await with_a_forgotten_revocation(registry, log)
    newest = await registry.last_event()
    rules = Distrust("0" * 12, NOW, NOW, "cam2"), Distrust("1" * 12, NOW - hour, NOW, "cam2")
    lost = [Event(EventKind.DISTRUST_CHANGED, rule.id, rule_text(rule), newest + n) for n, rule in enumerate(rules, 9)]
    await asyncio.to_thread(log.note, lost)
    assert list(revocations_in(log.path, 9))[-2:] == lost
    await write_back(registry, log, NOW + hour)
    made = {rule.id: rule.issued_before for rule in await registry.distrusts()}
    assert made == {rules[0].id: NOW + hour, rules[1].id: NOW - hour}
    assert not [e for e in revocations_in(log.path, 9) if e.kind == EventKind.DISTRUST_CHANGED]  # the registry has it


async def test_another_process_may_be_at_it_too(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = journal(tmp_path)
    await with_a_forgotten_revocation(registry, log)
    original, calls = registry.commit, []

    async def overtaken(change: object) -> None:
        calls.append(change)
        if len(calls) == 1:
            raise Conflict("device-moved", "Another was first.")
        await original(change)  # type: ignore[arg-type]

    monkeypatch.setattr(registry, "commit", overtaken)
    await catch_up(registry, log)
    assert await state_of(registry, "cam-1") is DeviceState.REVOKED
    await with_refusals(registry, log, monkeypatch)


async def with_refusals(registry: Registry, log: RevocationJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(change: object) -> None:
        raise Conflict("device-moved", "Another was first.")

    newest = await registry.last_event()
    await asyncio.to_thread(log.note, [Event(EventKind.DEVICE_STATE, "cam-2", "revoked", newest + 1)])
    monkeypatch.setattr(registry, "commit", never)
    with pytest.raises(Conflict):
        await write_back(registry, log, NOW)
    assert await has_gone_back(registry, log)


async def test_events_that_are_not_kept_any_more_are_no_sign(registry: Registry, tmp_path: Path) -> None:
    log = journal(tmp_path)
    await inventory.add_device(registry, "cam-1", "cam2", act=ACT)
    await revocation.revoke(registry, "cam-1", act=ACT)
    await catch_up(registry, log)
    [segment] = await asyncio.to_thread(read_segments, log.path)
    assert segment.events == []
    assert await asyncio.to_thread(log.newest_event) is None
    assert not await has_gone_back(registry, log)


async def test_the_running_job_notices_within_a_moment(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "CHECK_SECONDS", 0.02)
    # It may go back while the job is starting to follow.
    monkeypatch.setattr("fleet.runtime.background.RETRY_SECONDS", 0.02)
    log = journal(tmp_path)
    await inventory.add_device(registry, "cam-1", "cam2", act=ACT)
    written = asyncio.Event()
    original: Callable[..., Awaitable[object]] = write_back

    async def observed(*given: object) -> object:
        done = await original(*given)
        written.set()
        return done

    monkeypatch.setattr(job, "write_back", observed)
    async with job.journaling_revocations(registry, log, clock=lambda: NOW) as task:
        lost = Event(EventKind.DEVICE_STATE, "cam-1", "retired", await registry.last_event() + 5)
        await asyncio.to_thread(log.note, [lost])
        async with asyncio.timeout(DEADLINE_SECONDS):
            await written.wait()
        assert not task.done()
    assert await state_of(registry, "cam-1") is DeviceState.RETIRED
    assert service.ACTOR in {row.entry.actor for row in await registry.audit()}


def _noted(path: Path, events: Sequence[Event]) -> None:
    log = RevocationJournal(path, "ab" * 32)
    log.mark(newest=0)
    log.note(events)


def test_what_has_ended_for_good_is_read_from_a_journal_cut_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "state" / "revocations.jsonl"
    assert list(revocations_in(path, 9)) == []
    kinds = [("device.state", "revoked"), ("device.state", "suspended"), ("credential.ended", "ab" * 32)]
    kinds += [("device.state", "retired"), ("claim.state", "revoked"), ("credential.ended", "")]
    events = [Event(kind, f"d{number}", detail, number) for number, (kind, detail) in enumerate(kinds, 1)]
    _noted(path, events)
    wanted = [events[0], events[3], events[2], events[5]]
    assert list(revocations_in(path, 9)) == wanted
    assert list(revocations_in(path, 1)) == [events[3], events[5]]
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert set(revocations_in(path, 9)) <= set(wanted)


def test_the_newest_event_is_found_behind_marks_and_in_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "state" / "revocations.jsonl"
    events = [Event("device.state", f"device-{number:05}", "revoked", number) for number in range(1, 2001)]
    _noted(path, events)
    log = RevocationJournal(path, "ab" * 32)
    assert path.stat().st_size > 65536
    assert log.newest_event() == events[-1]
    log.record_examined(5000)
    assert log.newest_event() == events[-1]
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"lineage": "half')
    assert log.newest_event() == events[-1]
    log.reset(Mark(new_lineage(), 5000))
    assert log.newest_event() is None
