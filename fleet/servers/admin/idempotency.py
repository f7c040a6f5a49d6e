"""Idempotency keys: a request that is sent again, because its answer was lost, is answered and not done again.

The answer is written in the same transaction as the change, so there is never the one without the other; of two that
come at once, one is done and both are answered alike. A refused request leaves nothing: its key may be used again.
What makes many changes keeps its answer behind the last of them.
"""

import hashlib
import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar, cast

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fleet.domain.changes import AuditEntry, Change
from fleet.domain.idempotency import ANSWER_KEPT, Answer
from fleet.domain.ports import Registry
from fleet.domain.writes import DropAnswers, Insert, Write
from fleet.servers.admin.messages import Headers
from fleet.servers.admin.routing import Result
from fleet.servers.refusals import HttpRefused

HEADER = "Idempotency-Key"
KEY_SIZE_MAX = 128

V = TypeVar("V")

_KEY = re.compile(r"[!-~]{1,128}")


class Once(Struct, frozen=True):
    """One request under a key."""

    actor: str
    key: str
    request_sha256: bytes
    now: datetime

    async def replay(self, registry: Registry) -> Result[Any] | None:
        """What this request was answered before; None when it is new.

        Raises: HttpRefused: 422: the key was used for another request.
        """
        found = await registry.answer(self.actor, self.key)
        if found is None or found.at < self.now - ANSWER_KEPT:
            return None
        if found.request_sha256 != self.request_sha256:
            raise HttpRefused(422, "idempotency-key-reused", "This idempotency key was used for another request.")
        kept = json.loads(found.body)
        return Result(kept["body"], found.status, kept["headers"], kept["etag"])

    def answered(self, result: Result[Any]) -> Answer:
        kept = {"body": result.body, "headers": result.headers, "etag": result.etag}
        text = msgspec.json.encode(kept).decode()
        return Answer(self.actor, self.key, self.request_sha256, result.status, text, self.now)

    async def keep(self, registry: Registry, result: Result[Any], audit: AuditEntry) -> None:
        """Keep the answer to what was many changes, once they have been made.

        Raises: Conflict (`idempotency-key-used`): the same request, sent twice at once, has been answered meanwhile.
        """
        await registry.commit(Change(audit, self.writes(result)))

    def writes(self, result: Result[Any]) -> tuple[Write, ...]:
        return DropAnswers(self.now - ANSWER_KEPT), Insert(self.answered(result))


def once_of(headers: Headers, actor: str, target: str, body: bytes, now: datetime) -> Once | None:
    """The key that came with a POST to `target`, if one did. Raises: HttpRefused: 400 `bad-idempotency-key`."""
    keys = headers.getall(HEADER)
    if not keys:
        return None
    key = keys[0]
    if len(keys) > 1 or not _KEY.fullmatch(key):
        message = f"An idempotency key is 1 to {KEY_SIZE_MAX} printable ASCII characters without spaces."
        raise HttpRefused(400, "bad-idempotency-key", message)
    return Once(actor, key, hashlib.sha256(target.encode() + b"\0" + body).digest(), now)


class _Answering:
    """A registry that keeps the answer to a request together with the change that the request made."""

    def __init__(self, registry: Registry, once: Once, result_of: Callable[[Change], Result[Any]]) -> None:
        self._registry, self._once, self._result_of = registry, once, result_of

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)

    async def commit(self, change: Change) -> None:
        # First of all: of two alike at once, the second must hear that it has been answered, not that it came late.
        first = self._once.writes(self._result_of(change))
        await self._registry.commit(replace(change, writes=(*first, *change.writes)))


def inserted(change: Change, kind: type[V]) -> V:
    """The value of class `kind` that `change` adds."""
    return next(w.value for w in change.writes if isinstance(w, Insert) and isinstance(w.value, kind))


def answering(registry: Registry, once: Once | None, result_of: Callable[[Change], Result[Any]]) -> Registry:
    """The registry through which a request makes its one change. `result_of` tells from that change what the answer
    will be, without any secret.
    """
    if once is None:
        return registry
    return cast(Registry, _Answering(registry, once, result_of))
