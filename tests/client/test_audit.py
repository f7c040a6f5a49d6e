"""The audit as a server tells it that is broken, or means harm: an end, and a sentence."""

from typing import Any, cast

import pytest

from fleet.client.audit import ApiAudit
from fleet.client.client import Client
from fleet.domain.errors import Unavailable

HEAD = {"size": 5, "root": "00" * 32, "at": "2026-01-01T00:00:00.000Z", "key_id": "00" * 32, "signature": "00"}
ENTRY = {"at": "2026-01-01T00:00:00Z", "actor": "a", "action": "b", "subject": "c", "outcome": "ok", "address": ""}
ROW = {"seq": 3, **ENTRY, "detail": {}, "leaf": "00" * 32}


class Server:
    """Gives one answer to everything."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def get(self, path: str) -> Any:
        return self._value


def audit(value: Any) -> ApiAudit:
    return ApiAudit(cast(Client, Server(value)))


async def test_the_same_page_again_and_again_comes_to_an_end() -> None:
    told = audit({"items": [ROW], "next": "/v1/audit?cursor=x", "last": 9})
    with pytest.raises(Unavailable, match="out of order, or twice"):
        await told.audit(after=0, limit=1000)
    heads = audit({"items": [HEAD], "next": None})
    assert [head.size for head in await heads.audit_heads(after=4)] == [5]
    with pytest.raises(Unavailable, match="out of order, or twice"):
        await heads.audit_heads(after=5)
    with pytest.raises(Unavailable, match="out of order, or twice"):
        await audit({"items": [HEAD, HEAD], "next": None}).audit_heads()


@pytest.mark.parametrize("value", [None, {}, [], {"items": None}, {"items": [{}]}, {"items": [{**ROW, "leaf": "zz"}]}])
async def test_what_cannot_be_read_is_told_in_a_sentence(value: Any) -> None:
    told = audit(value)
    for ask in (told.audit, told.last_audit, told.audit_heads, told.last_sealed):
        with pytest.raises(Unavailable, match="cannot be read"):
            await ask()
    with pytest.raises(Unavailable, match="cannot be read"):
        await told.audit_hashes(0, 0, 1)
