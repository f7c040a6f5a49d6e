"""Operations on every device of a filter: each device in a separate Change, many of them under way at once.

    operation = Move("suspend", actor="operator", reason="lot L7 leaks", clock=utc_now)
    async for outcome in act_on_many(registry, where, operation, at_most=count, stop=stop):
        ...

Each Change names the revision that was read: a device that has changed meanwhile is left alone, since it may no longer
match. What has begun is finished, so an interruption leaves nothing half done, and the same operation again does what
is left.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from fleet.domain.access import Act
from fleet.domain.changes import Change
from fleet.domain.device import Device, DeviceFilter, Place, place_of
from fleet.domain.errors import Conflict, FleetError, Unavailable
from fleet.domain.ports import Registry
from fleet.domain.tags import Retag
from fleet.services.revocation import checked_reason, given_reason, moving, state_after
from fleet.services.tagging import tagging

WINDOW = 64  # Changes under way at once: enough to share an fsync, few beside the 512 that enrollments may fill
PAGE = 500  # devices read at once

DONE = "ok"


class Operation(Protocol):
    """What is done to each device."""

    async def change(self, registry: Registry, device: Device) -> Change:
        """Raises: FleetError: nothing is to be done to this one, and why."""


def new_bulk_id() -> str:
    """The id that the audit rows of one operation share."""
    return secrets.token_hex(6)


@dataclass(frozen=True, slots=True)
class Move:
    """suspend, resume, revoke or retire."""

    verb: str
    actor: str
    reason: str
    bulk: str
    clock: Callable[[], datetime]
    address: str = ""

    def __post_init__(self) -> None:
        """Raises: Invalid (`bad-reason`)."""
        checked_reason(self.reason)

    async def change(self, registry: Registry, device: Device) -> Change:
        to = await state_after(self.verb, registry, device)
        return moving(
            device,
            to,
            f"device.{self.verb}",
            act=Act(self.actor, self.clock(), self.address),
            reason=self.reason,
            revision=device.revision,
            bulk=self.bulk,
        )


@dataclass(frozen=True, slots=True)
class Tagging:
    """Tags and groups."""

    retag: Retag
    actor: str
    reason: str
    bulk: str
    clock: Callable[[], datetime]
    address: str = ""

    def __post_init__(self) -> None:
        """Raises: Invalid (`bad-reason`)."""
        checked_reason(self.reason)

    async def change(self, registry: Registry, device: Device) -> Change:
        act = Act(self.actor, self.clock(), self.address)
        change, _ = tagging(device, self.retag, act=act, bulk=self.bulk, **given_reason(self.reason))
        return change


@dataclass(frozen=True, slots=True)
class Outcome:
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


async def matching(registry: Registry, where: DeviceFilter) -> AsyncIterator[Device]:
    """Every device that matches `where`, read page by page."""
    after = Place()
    while page := await registry.devices(where, after=after, limit=PAGE):
        for device in page:
            yield device
        after = place_of(page[-1], where)


async def act_on_many(
    registry: Registry, where: DeviceFilter, operation: Operation, *, at_most: int, stop: asyncio.Event
) -> AsyncIterator[Outcome]:
    """Do `operation` to the devices that `where` means, never to more than `at_most`; an outcome each, as they come.

    When `stop` is set nothing new is begun, and the outcomes of what was under way are still given.

    Raises: what reading the devices raises, once everything under way has ended.
    """
    running: set[asyncio.Task[Outcome]] = set()
    begun = 0
    try:
        async for device in matching(registry, where):
            if stop.is_set() or begun == at_most:
                break
            running.add(asyncio.create_task(act_on_one(registry, device, operation)))
            begun += 1
            if len(running) >= WINDOW:
                ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    yield task.result()
        while running:
            ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                yield task.result()
    finally:
        if running:
            await asyncio.wait(running)


async def act_on_one(registry: Registry, device: Device, operation: Operation) -> Outcome:
    """Do `operation` to `device`, as it was seen."""
    try:
        change = await operation.change(registry, device)
    except FleetError as error:  # a Conflict here says that there is nothing to do
        return Outcome(device.id, error.code, error.message, is_failure=not isinstance(error, Conflict))
    try:
        await registry.commit(change)
    except FleetError as error:
        return Outcome(device.id, error.code, error.message, is_failure=True)
    return Outcome(device.id, DONE)
