"""External authorization of a first certificate by the model's webhook. A failed call denies.

    verdict = await verdict_of(authorizer, url, question_of(context, peer))     # raises Unreachable
    allowed(verdict)                                                               # raises Refused

It is called last, once for a request. Its verdict can deny, and can set tags.
"""

import secrets
from typing import Protocol

from fleet.domain.authorization import Question, Verdict
from fleet.domain.device import Tags
from fleet.domain.errors import Invalid, Refused, Unreachable
from fleet.domain.issuance_context import IssuanceContext
from fleet.domain.peer import Peer
from fleet.domain.tags import checked_tags


class Authorizer(Protocol):
    """Client of a webhook."""

    async def ask(self, url: str, question: Question) -> Verdict:
        """The verdict of the webhook at `url`, within seconds. Raises: Unreachable: no valid response."""


def question_of(context: IssuanceContext, peer: Peer) -> Question:
    """The request for `context`, which has passed every check."""
    return Question(
        id=secrets.token_hex(16),
        device_id=context.request.device_id,
        model=context.model.name,
        path=str(context.grant.path),
        key_type=context.request.key_type,
        key_sha256=context.request.key_sha256,
        address=peer.address,
        at=context.now,
    )


async def verdict_of(authorizer: Authorizer | None, url: str, question: Question) -> Verdict:
    """Raises: Unreachable: no valid response, or no client is configured."""
    if authorizer is None:
        raise Unreachable("this process asks no webhooks")
    return await authorizer.ask(url, question)


def allowed(verdict: Verdict) -> None:
    """Raises: Refused (`webhook-denied`)."""
    if not verdict.allow:
        raise Refused("webhook-denied", "The authorization service of this model has refused this device.")


def tags_with(context: IssuanceContext, verdict: Verdict) -> Tags:
    """The device's tags with those set by the webhook. Raises: Unreachable: the result violates the rules of tags."""
    old = context.device.tags if context.device is not None else ()
    try:
        return checked_tags({**dict(old), **dict(verdict.tags)}.items())
    except Invalid as error:
        raise Unreachable(f"its attributes cannot be tags: {error.message}") from error
