"""Operations on every device of a filter, in bounded steps: each device in a separate Change, many under way at once.

    operation = Move("suspend", actor="operator bob", reason="lot L7 leaks", clock=utc_now)
    step = await one_step(registry, (where,), operation, FIRST, at_most=count, stop=stop)
    step = await one_step(registry, (where,), operation, step.following, at_most=count - len(step.outcomes), stop=stop)

Each Change names the revision that was read: a device that has changed meanwhile is left alone, since it may no longer
match. What has begun is finished, so an interruption leaves nothing half done, and the same operation again does what
is left. Nothing is kept between steps: the client passes the position back.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from fleet.domain.access import Act
from fleet.domain.changes import Change
from fleet.domain.crl import CrlReason
from fleet.domain.device import FIRST_PLACE, Device, DeviceFilter, Place, place_of
from fleet.domain.errors import Conflict, FleetError, Invalid, Unavailable
from fleet.domain.ports import Registry
from fleet.domain.tags import Retag
from fleet.services.notifying import NOT_SUBSCRIBED, Message, Notice, Notifier
from fleet.services.revocation import checked_reason, given_reason, moving, revoking, state_after
from fleet.services.tagging import tagging

WINDOW = 64  # Changes under way at once: enough to share an fsync, few beside the 512 that enrollments may fill
STEP_DEVICES_MAX = 500

DONE = "ok"

What = TypeVar("What", str, Retag, CrlReason, Message)


class Operation(Protocol):
    """What is done to each device."""

    async def must_be_permitted(self) -> None:
        """Raises: FleetError: who does it may not do so any more."""

    async def change(self, registry: Registry, device: Device) -> Change:
        """Raises: FleetError: nothing is to be done to this one, and why."""

    async def follow_up(self, registry: Registry, device: Device) -> str:
        """What is to be done once the change is committed; DONE, or the code of what was not. Raises: FleetError."""


def must_be_confirmed(expected: int | UnsetType, matched: int) -> None:
    """Raises: Invalid (`count-needed`). Conflict (`count-differs`)."""
    if expected is UNSET:
        advice = "Ask for it with dry_run, and give it as expected."
        raise Invalid("count-needed", "An operation on many is confirmed by their number.", advice)
    if expected != matched:
        raise Conflict("count-differs", f"{matched} match, not {expected}; nothing was changed.")


def new_bulk_id() -> str:
    """The id that the audit rows of one operation share."""
    return secrets.token_hex(6)


class _Bulk(Struct, Generic[What], frozen=True):
    """One operation: what it does, by whom, why, and the id that its audit rows share."""

    what: What
    actor: str
    reason: str
    bulk: str
    clock: Callable[[], datetime]
    address: str = ""
    permitted: Callable[[], Awaitable[object]] | None = None
    """Raises once the operator may not do it any more; None for a user of this machine."""

    def __post_init__(self) -> None:
        """Raises: Invalid (`bad-reason`)."""
        checked_reason(self.reason)

    async def must_be_permitted(self) -> None:
        if self.permitted is not None:
            await self.permitted()

    def act(self) -> Act:
        return Act(self.actor, self.clock(), self.address)

    async def follow_up(self, registry: Registry, device: Device) -> str:
        return DONE


class Move(_Bulk[str], frozen=True):
    """suspend, resume or retire."""

    async def change(self, registry: Registry, device: Device) -> Change:
        to, action = await state_after(self.what, registry, device), f"device.{self.what}"
        revision, reason = device.revision, self.reason
        return moving(device, to, action, act=self.act(), reason=reason, revision=revision, bulk=self.bulk)


class Revoke(_Bulk[CrlReason], frozen=True):
    """Revoke, with the reason that CRLs give."""

    async def change(self, registry: Registry, device: Device) -> Change:
        reason, revision = self.reason, device.revision
        return await revoking(
            registry, device, self.what, act=self.act(), reason=reason, revision=revision, bulk=self.bulk
        )


class Tagging(_Bulk[Retag], frozen=True):
    """Tags and groups."""

    async def change(self, registry: Registry, device: Device) -> Change:
        change, _ = tagging(device, self.what, act=self.act(), bulk=self.bulk, **given_reason(self.reason))
        return change


class Notify(_Bulk[Message], frozen=True, kw_only=True):
    """Publish a message of the fleet."""

    notifier: Notifier

    async def change(self, registry: Registry, device: Device) -> Change:
        return await self._notice().change(registry, device)

    async def follow_up(self, registry: Registry, device: Device) -> str:
        subscribed = await self._notice().deliver(registry, device)
        return NOT_SUBSCRIBED if subscribed is False else DONE

    def _notice(self) -> Notice:
        """By an act of this moment."""
        return Notice(self.notifier, self.what, self.act(), {"bulk": self.bulk, **given_reason(self.reason)})


class Outcome(Struct, frozen=True):
    """How it went with one device."""

    device_id: str
    code: str
    """"ok", or the code of the refusal."""
    why: str = ""
    is_failure: bool = False
    """Whether it should be looked at again: the registry failed, or the device was changed by somebody else first."""

    def must_be_done(self) -> None:
        """Raises: Unavailable: it is not."""
        if self.code != DONE:
            raise Unavailable(self.code, self.why)


async def act_on_one(registry: Registry, device: Device, operation: Operation) -> Outcome:
    """Do `operation` to `device`, as it was seen."""
    try:
        change = await operation.change(registry, device)
    except FleetError as error:  # a Conflict here says that there is nothing to do
        return Outcome(device.id, error.code, error.message, is_failure=not isinstance(error, Conflict))
    try:
        await registry.commit(change)
        return Outcome(device.id, await operation.follow_up(registry, device))
    except FleetError as error:
        return Outcome(device.id, error.code, error.message, is_failure=True)


class StepPlace(Struct, frozen=True):
    """The position where a step starts: which of the filters, and where in its pages."""

    number: int = 0
    after: Place = FIRST_PLACE
    began: datetime | None = None
    """When the operation began: devices registered since are left alone. None: there may be none."""

    def takes(self, device: Device) -> bool:
        """Whether the operation is for `device`."""
        return self.began is None or device.created_at <= self.began


FIRST = StepPlace()


class Step(Struct, frozen=True):
    """What one step has done."""

    outcomes: tuple[Outcome, ...]
    following: StepPlace | None
    """Where the next one starts; None at the end."""


async def one_step(
    registry: Registry,
    filters: Sequence[DeviceFilter],
    operation: Operation,
    place: StepPlace,
    *,
    at_most: int,
    stop: asyncio.Event,
) -> Step:
    """Apply `operation` to the next devices of `filters`, one filter after the other: to at most STEP_DEVICES_MAX, and
    never to more than `at_most`. When `stop` is set nothing new is begun, and what is under way is finished.

    Raises: what `operation.must_be_permitted` raises, asked before each WINDOW of them: nothing new is begun.
    """
    outcomes: list[Outcome] = []
    while place.number < len(filters) and len(outcomes) < at_most:
        where = filters[place.number]
        room = min(STEP_DEVICES_MAX, at_most) - len(outcomes)
        if room <= 0 or stop.is_set():
            return Step(tuple(outcomes), place)
        page = await registry.devices(where, after=place.after, limit=room)
        for start in range(0, len(page), WINDOW):
            if stop.is_set():
                return Step(tuple(outcomes), place)
            await operation.must_be_permitted()
            some = page[start : start + WINDOW]
            # Shielded: the client may disconnect, and what has begun is finished all the same.
            acts = asyncio.gather(*(act_on_one(registry, device, operation) for device in some if place.takes(device)))
            outcomes += await asyncio.shield(acts)
            place = replace(place, after=place_of(some[-1], where))
        if len(page) < room:
            place = replace(place, number=place.number + 1, after=FIRST_PLACE)
    return Step(tuple(outcomes), None)
