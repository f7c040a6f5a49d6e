"""Default deny: every method on every path with every content type and every kind of credential.

The table below names each combination that is let in; everything else that can be sent must be refused, by a status
that says so, without a trace in the registry.
"""

from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path

import pytest

from fleet.domain.access import Act
from fleet.services import revocation
from fleet.wire.est import OPERATIONS, encode_body
from tests.servers.est_house import House, Identity, KeptAlive, basic, csr_for, open_house, renewal_csr

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
LABELS = ("", "cam/", "pump/")
CONTENT_TYPES = ("application/pkcs10", "application/json", None)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as house:
        yield house


async def credentials(house: House) -> dict[str, tuple[Identity | None, dict[str, str]]]:
    """Every kind of proof that a client can bring, as (certificate, headers)."""
    device, other = await house.enrolled("cam-1"), await house.enrolled("cam-2")
    revoked, suspended = await house.enrolled("cam-3"), await house.enrolled("cam-4")
    await revocation.revoke(house.registry, "cam-3", act=Act("test", house.clock()))
    await revocation.suspend(house.registry, "cam-4", act=Act("test", house.clock()))
    token = basic(await house.token("cam-1", uses=99))
    return {
        "nothing": (None, {}),
        "wrong token": (None, basic("aaaa.bbbb")),
        "token": (None, token),
        "own certificate": (device, {}),
        "own certificate and token": (device, token),
        "other certificate": (other, {}),
        "other certificate and token": (other, token),
        "revoked certificate": (revoked, {}),
        "revoked certificate and token": (revoked, token),
        "suspended certificate and token": (suspended, token),
        "station": (await house.station("line-1", ("cam",)), {}),
        "station of another model": (await house.station("line-2", ("pump",)), {}),
    }


ALLOWED = {
    *(("GET", f"{label}{operation}") for label in LABELS for operation in ("cacerts", "csrattrs")),
}
"""Open to anybody, whatever else is sent."""

OWN = ("own certificate", "own certificate and token")
ALLOWED_FOR = {
    *(("simpleenroll", label, who) for label in ("", "cam/") for who in ("token", OWN[1])),
    *(
        ("simplereenroll", label, who)
        for label in ("", "cam/")
        for who in ("own certificate", "own certificate and token")
    ),
}
"""As POST of application/pkcs10, for the device cam-1. Not the station: cam-1 has been seen in use."""


async def test_only_what_is_named_is_let_in(house: House) -> None:
    kinds = await credentials(house)
    device = kinds["own certificate"][0]
    assert device is not None
    assert (await house.reenroll(renewal_csr(device), device)).status == 200  # cam-1 has been seen in use
    before = {name: len(await house.registry.credentials(name)) for name in ("cam-1", "cam-2", "cam-3", "cam-4")}
    let_in = 0
    stale = encode_body(csr_for("cam-1"))
    for who, (identity, headers) in kinds.items():
        client = KeptAlive(house, identity)
        for method, label, operation in product(METHODS, LABELS, OPERATIONS):
            for content_type in CONTENT_TYPES if method == "POST" else CONTENT_TYPES[:1]:
                typed = {"Content-Type": content_type, **headers} if content_type else headers
                path = f"/.well-known/est/{label}{operation}"
                asked = (who, method, path, content_type)
                enrolls = method == "POST" and content_type == "application/pkcs10"
                # A new key each time, so that none is answered with what another has earned.
                body = encode_body(csr_for("cam-1")) if enrolls else stale
                answer = await client.send(method, path, body, typed)
                if (method, f"{label}{operation}") in ALLOWED:
                    assert answer.status in ((200,) if operation == "cacerts" else (200, 204)), asked
                elif enrolls and (operation, label, who) in ALLOWED_FOR:
                    assert answer.status == 200, (asked, answer.text)
                    let_in += 1
                else:
                    assert answer.status in (400, 401, 403, 404, 405, 415, 501), asked
                    if operation in ("simpleenroll", "simplereenroll", "serverkeygen") and enrolls:
                        assert answer.status in (401, 403), asked
        client.close()
    after = {name: len(await house.registry.credentials(name)) for name in before}
    assert after == {**before, "cam-1": before["cam-1"] + let_in}
    assert let_in == len(ALLOWED_FOR)
    assert len(await house.registry.devices()) == 4


async def test_the_admin_listener_serves_nothing_of_est_and_the_other_way_round(house: House) -> None:
    assert (await house.send("GET", "/.well-known/est/cacerts", server="admin")).status == 404
    assert (await house.send("GET", "/healthz", server="est")).status == 404
