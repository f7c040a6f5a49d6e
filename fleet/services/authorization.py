"""Asking a model's webhook before a first certificate. Whoever cannot be asked has not said yes.

    verdict = await verdict_of(authoriser, url, question_of(application, peer))     # raises Unreachable
    allowed(verdict)                                                               # raises Refused

It is asked last, once for a request, and its word counts for nothing but this: it may say no, and give tags.
"""

import secrets
from typing import Protocol

from fleet.domain.authorization import Question, Verdict
from fleet.domain.device import Tags
from fleet.domain.errors import Invalid, Refused, Unreachable
from fleet.domain.issuance_context import Application
from fleet.domain.peer import Peer
from fleet.domain.tags import checked_tags


class Authoriser(Protocol):
    """Asks a webhook."""

    async def ask(self, url: str, question: Question) -> Verdict:
        """What the webhook at `url` answers, within seconds.

        Raises: Unreachable: nothing that counts.
        """
        ...


def question_of(application: Application, peer: Peer) -> Question:
    """What is asked about `application`, which has passed every check."""
    return Question(
        id=secrets.token_hex(16),
        device_id=application.request.names.common_name(),
        model=application.model.name,
        path=str(application.grant.path),
        key_type=application.request.key_type,
        key_sha256=application.request.key_sha256,
        address=peer.address,
        at=application.now,
    )


async def verdict_of(authoriser: Authoriser | None, url: str, question: Question) -> Verdict:
    """Raises: Unreachable: nothing that counts was answered, or nobody is there to ask."""
    if authoriser is None:
        raise Unreachable("this process asks no webhooks")
    return await authoriser.ask(url, question)


def allowed(verdict: Verdict) -> None:
    """Raises: Refused (`webhook-denied`)."""
    if not verdict.allow:
        raise Refused("webhook-denied", "The authorisation service of this model has refused this device.")


def tags_with(application: Application, verdict: Verdict) -> Tags:
    """The device's tags with those that the webhook gives.

    Raises: Unreachable: together they break the rules of tags.
    """
    old = application.device.tags if application.device is not None else ()
    try:
        return checked_tags({**dict(old), **dict(verdict.tags)}.items())
    except Invalid as error:
        raise Unreachable(f"its attributes cannot be tags: {error.message}") from error
