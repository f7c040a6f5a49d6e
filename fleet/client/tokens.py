"""Making tokens: one whose secret was not delivered does not stay valid."""

import contextlib
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from fleet.client.client import Client, bad_answer, path_of
from fleet.domain.errors import Conflict, Unavailable

Json = Mapping[str, Any]

_TOKEN = re.compile(r"[0-9a-f]{12}\.[A-Za-z0-9_-]{1,200}")


@contextlib.contextmanager
def delivered_token(client: Client, body: Json, key: str = "") -> Iterator[Json]:
    """A new token; when the block fails to deliver its secret, it is revoked.

    `key`: the idempotency key of an attempt that may have been cut off before: what it made is revoked first.

    Raises: FleetError.
    """
    made = _made(client, body, key or secrets.token_hex(16))
    try:
        yield made
    except BaseException:
        with contextlib.suppress(Exception):  # the error to show is what prevented the delivery
            revoke_if_valid(client, made["id"])
        raise


def revoke_if_valid(client: Client, token_id: str) -> None:
    with contextlib.suppress(Conflict):
        client.post(path_of("/v1/tokens/{}/revoke", token_id))


def _made(client: Client, body: Json, key: str) -> Json:
    headers = {"Idempotency-Key": key}
    try:
        made = client.ask("POST", "/v1/tokens", body, headers)[0]
    except Unavailable:  # it may have been made, and its answer lost
        made = client.ask("POST", "/v1/tokens", body, headers)[0]
    if not isinstance(made, dict) or not isinstance(made.get("id"), str):
        raise bad_answer("it made no token")
    if "token" not in made:  # made by an earlier attempt: the secret was in an answer that is gone
        revoke_if_valid(client, made["id"])
        made = client.ask("POST", "/v1/tokens", body, {"Idempotency-Key": secrets.token_hex(16)})[0]
    text = made.get("token")
    if not isinstance(text, str) or not _TOKEN.fullmatch(text):
        raise bad_answer("it made no token")
    return dict(made)
