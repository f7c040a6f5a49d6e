"""Publishing at the broker of another node, by way of the registry.

    subscribed = await OtherNodes().publish(registry, "b:/home", topic, payload, now)   # at the node that is asked
    await publish_for_others(registry, "b:/home", publisher, clock)                     # at b, until cancelled

A payload is in the registry until it is published: for some 0.3 seconds. Where no node publishes it, the process that
left it removes it after ANSWER_SECONDS_MAX; when that has ended, any node does within a second more.
"""

import asyncio
import logging
from datetime import datetime, timedelta
from itertools import count

from fleet.config.clock import Clock
from fleet.config.logs import FailureLog
from fleet.domain.errors import FleetError, Unavailable
from fleet.domain.node_messages import OUTCOMES, NodeMessage
from fleet.domain.ports import Registry
from fleet.services.publisher import Publisher

log = logging.getLogger("fleet.broker")

ANSWER_SECONDS_MAX = 8.0  # the broker's own answer may take five
ANSWER_TIME = timedelta(seconds=ANSWER_SECONDS_MAX)
ASK_SECONDS = 0.05
LOOK_SECONDS = 0.25
LOOKS_UNTIL_SWEEP = 4
RETRY_SECONDS = 5.0
AT_ONCE_MAX = 16  # of one process, and published by a node: 1 MiB


class OtherNodes:
    """Those of one process."""

    def __init__(self) -> None:
        self._at_once = asyncio.Semaphore(AT_ONCE_MAX)

    async def publish(self, registry: Registry, node: str, topic: str, payload: bytes, now: datetime) -> bool | None:
        """As `Publisher.publish`, at the broker of `node`. Raises: Unavailable: `node-silent`, too."""
        import secrets  # commands that publish nothing import this module

        message = NodeMessage(secrets.token_hex(16), node, topic, payload, now + ANSWER_TIME)
        try:
            # Those that wait for others' answers wait no longer: many at a node that is silent hold nobody up.
            async with asyncio.timeout(ANSWER_SECONDS_MAX), self._at_once:
                answer = await _answered(registry, message, now)
        except TimeoutError:
            what = f"The node {node} does not answer."
            raise Unavailable("node-silent", what, "Try again; it may have taken the message.") from None
        if answer not in OUTCOMES:
            raise Unavailable(answer, f"The node {node} could not publish the message.", "See its log.")
        return OUTCOMES[answer]


async def _answered(registry: Registry, message: NodeMessage, now: datetime) -> str:
    """The answer to `message`, which is in the registry until then."""
    await registry.leave_message(message, now)
    try:
        return await _answer_to(registry, message.id)
    finally:
        await asyncio.shield(registry.drop_message(message.id))


async def _answer_to(registry: Registry, message_id: str) -> str:
    while True:
        if answer := await registry.answer_to(message_id):
            return answer
        await asyncio.sleep(ASK_SECONDS)


async def publish_for_others(registry: Registry, node: str, publisher: Publisher, clock: Clock) -> None:
    """What other nodes leave for `node`, until cancelled."""
    failures = FailureLog(log, "node-messages")
    for look in count():
        await asyncio.sleep(LOOK_SECONDS)
        try:
            if look % LOOKS_UNTIL_SWEEP == 0:
                await registry.drop_expired_messages(clock())
            waiting = await registry.messages_for(node, clock(), AT_ONCE_MAX)
            await asyncio.gather(*(_publish(registry, publisher, each) for each in waiting))
            failures.succeeded()
        except FleetError as error:
            failures.failed(code=error.code)
            await asyncio.sleep(RETRY_SECONDS)


async def _publish(registry: Registry, publisher: Publisher, message: NodeMessage) -> None:
    try:
        subscribed = await publisher.publish(message.topic, message.payload)
        answer = next(name for name, said in OUTCOMES.items() if said is subscribed)
    except Unavailable as error:
        answer = error.code
    await registry.answer_message(message.id, answer)
