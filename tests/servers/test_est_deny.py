"""Default deny: every method on every path with every content type and every kind of credential.

The table below names each combination that is let in; everything else that can be sent must be refused, by a status
that says so, without a trace in the registry.
"""

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import product
from pathlib import Path

import pytest
from cryptography import x509
from msgspec.structs import replace

from fleet.ca.keys import generate_key
from fleet.domain.access import Act
from fleet.domain.device import Model
from fleet.domain.model_rules import rules_of
from fleet.services import inventory, revocation
from fleet.wire.est import OPERATIONS, encode_body
from tests.ca.certificate_kinds import permit_for
from tests.servers.est_fixtures import EstHarness, Identity, KeptAlive, basic, csr_for, open_est, renewal_csr
from tests.tiers import Tier

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND")
LABELS = ("", "cam/", "pump/", "nonesuch/")
OPERATION_PATHS = tuple(f"/.well-known/est/{label}{operation}" for label, operation in product(LABELS, OPERATIONS))
ODD_PATHS = (
    "/",
    "/simpleenroll",
    "/.well-known/est",
    "/.well-known/est/",
    "/.well-known/est/cam",
    "/.well-known/est/simpleenroll/",
    "/.well-known/est//simpleenroll",
    "/.well-known/est/cam/cam/simpleenroll",
    "/.well-known/est/simpleenroll/simpleenroll",
    "/.well-known/est/cacerts/simplereenroll",
    "/.well-known/est/SimpleEnroll",
    "/.well-known/est/%C5%BFimpleenroll",
    "/.well-known/est/c%40m/simpleenroll",
    "/.well-known/est/../est/simpleenroll",
    "/.well-known/EST/simpleenroll",
    "/.well-known/est/revoke",
    "/v1/devices",
    "/healthz",
)
CONTENT_TYPES = ("application/pkcs10", "application/json", "application/pkcs7-mime", None)
Asked = tuple[str, str, str | None]


def requests_of(tier: Tier) -> tuple[Asked, ...]:
    """(path, method, content type) of every request that is made with every kind of credential.

    The short tier sends the one content type that opens anything, but with POST, whose body alone is read.
    """
    rarely = CONTENT_TYPES[: tier.times(1, all=len(CONTENT_TYPES))]
    return (
        *product(OPERATION_PATHS, ("POST",), CONTENT_TYPES),
        *product(OPERATION_PATHS, [method for method in METHODS if method != "POST"], rarely),
        *product(ODD_PATHS, METHODS, CONTENT_TYPES[:1]),  # where there is nothing, nothing reads it
    )


@pytest.fixture
async def est(tmp_path: Path) -> AsyncIterator[EstHarness]:
    async with open_est(tmp_path) as est:
        await inventory.add_model(est.registry, KEYGEN, act=Act("test", est.clock()))
        yield est


KEYGEN = Model("keygen", rules=rules_of({"profile": {"server_keygen": True}}))
"""A model that opens serverkeygen: cam does not, and so nothing below may make a key for it."""

Shown = tuple[Identity | None, dict[str, str]]


async def credentials(est: EstHarness) -> dict[str, Shown]:
    """Every kind of proof that a client can bring, as (certificate, headers)."""
    now, registry = est.clock(), est.registry
    act = Act("test", now)
    device, other = await est.enrolled("cam-1"), await est.enrolled("cam-2")
    revoked, suspended = await est.enrolled("cam-3"), await est.enrolled("cam-4")
    await revocation.revoke(registry, "cam-3", act=act)
    await revocation.suspend(registry, "cam-4", act=act)
    retired = await est.enrolled("cam-5")
    await revocation.retire(registry, "cam-5", act=act)
    token = basic(await est.token("cam-1", uses=9999))
    ended, text = await inventory.create_token(registry, device="cam-1", act=act)
    await inventory.revoke_token(registry, ended.id, act=act)
    est.now = now - timedelta(hours=9)
    expired = basic(await est.token("cam-1"))
    est.now = None
    spent = await est.token("cam-2")
    assert (await est.enroll(csr_for("cam-2"), basic(spent))).status == 200
    station = await est.station("line-1", ("cam",))
    gone = await est.station("line-3", ("cam",))
    await revocation.revoke_station(registry, "line-3", act=act)
    nobodys = unrecorded(est)
    return {
        "nothing": (None, {}),
        "wrong token": (None, basic("aaaa.bbbb")),
        "empty token": (None, basic("")),
        "token": (None, token),
        "token as Bearer": (None, {"Authorization": token["Authorization"].replace("Basic", "Bearer")}),
        "token of another device": (None, basic(await est.token("cam-2", uses=9999))),
        "token of another model": (None, basic(await est.token(model="pump", uses=9999))),
        "token of the model": (None, basic(await est.token(model="cam", uses=9999))),
        "revoked token": (None, basic(text)),
        "expired token": (None, expired),
        "spent token": (None, basic(spent)),
        "own certificate": (device, {}),
        "own certificate and token": (device, token),
        "own certificate and wrong token": (device, basic("aaaa.bbbb")),
        "other certificate": (other, {}),
        "other certificate and token": (other, token),
        "revoked certificate": (revoked, {}),
        "revoked certificate and token": (revoked, token),
        "suspended certificate": (suspended, {}),
        "suspended certificate and token": (suspended, token),
        "retired certificate and token": (retired, token),
        "certificate of ours that nobody recorded": (nobodys, {}),
        "station": (station, {}),
        "station and wrong token": (station, basic("aaaa.bbbb")),
        "station of another model": (await est.station("line-2", ("pump",)), {}),
        "revoked station": (gone, {}),
    }


def unrecorded(est: EstHarness) -> Identity:
    """Signed by our CA in cam-1's name, and in no registry: as whoever stole the CA's key would make it."""
    key = generate_key()
    der = est.issuer.issue(replace(permit_for(key, est.clock()), holder="cam-1"), est.clock()).der
    return est.identity(x509.load_der_x509_certificate(der), key)


OPEN = {f"/.well-known/est/{label}{operation}" for label in LABELS for operation in ("cacerts", "csrattrs")}
"""By GET and HEAD, to anybody, whatever else is sent."""

OURS = ("", "cam/")
ALLOWED_FOR = {
    *(
        (f"/.well-known/est/{label}simpleenroll", who)
        for label in OURS
        for who in ("token", "own certificate and token")
    ),
    *(
        (f"/.well-known/est/{label}simplereenroll", who)
        for label in OURS
        for who in ("own certificate", "own certificate and token", "own certificate and wrong token")
    ),
}
"""As POST of application/pkcs10, for the device cam-1. Not the station, nor the model's token: cam-1 has been seen in
use. A renewal looks at the certificate alone, whatever stands beside it.
"""


@dataclass
class Tally:
    asked: int = 0
    let_in: int = 0
    statuses: Counter[int] = field(default_factory=Counter)


async def test_only_what_is_named_is_let_in(est: EstHarness, tier: Tier) -> None:
    requests, kinds = requests_of(tier), await credentials(est)
    device = kinds["own certificate"][0]
    assert device is not None
    assert (await est.reenroll(renewal_csr(device), device)).status == 200  # cam-1 has been seen in use
    names = [str(d.id) for d in await est.registry.devices()]
    before = {name: len(await est.registry.credentials(name)) for name in names}
    tally = Tally()
    for who, (identity, headers) in kinds.items():
        client = KeptAlive(est, identity)
        for asked in requests:
            await must_be_as_named(client, headers, who, asked, tally)
        client.close()
    after = {name: len(await est.registry.credentials(name)) for name in names}
    assert after == {**before, "cam-1": before["cam-1"] + tally.let_in}
    assert tally.let_in == len(ALLOWED_FOR)
    assert tally.asked == len(kinds) * len(requests)
    assert [d.id for d in await est.registry.devices()] == names
    print(f"\n{tally.asked} requests, {tally.let_in} certificates: {dict(sorted(tally.statuses.items()))}")


STALE = encode_body(csr_for("cam-1"))


async def must_be_as_named(client: KeptAlive, headers: dict[str, str], who: str, asked: Asked, tally: Tally) -> None:
    path, method, content_type = asked
    typed = {"Content-Type": content_type, **headers} if content_type else headers
    enrolls = method == "POST" and content_type == "application/pkcs10" and path in OPERATION_PATHS
    # A new key each time, so that none is answered with what another has earned.
    body = encode_body(csr_for("cam-1")) if enrolls else STALE
    answer = await client.send(method, path, body, typed)
    tally.asked += 1
    tally.statuses[answer.status] += 1
    if method in ("GET", "HEAD") and path in OPEN:
        # No credentials are needed, but csrattrs says which are wrong.
        is_wrong = who.endswith(("wrong token", "empty token", "as Bearer"))
        csrattrs = (401,) if is_wrong else (200, 204)
        assert answer.status in ((200,) if path.endswith("cacerts") else csrattrs), (who, asked)
    elif enrolls and (path, who) in ALLOWED_FOR:
        assert answer.status == 200, (who, asked, answer.text)
        tally.let_in += 1
    else:
        assert answer.status in (400, 401, 403, 404, 405, 415, 501), (who, asked, answer.status)
        if enrolls and path.rpartition("/")[2] in ("simpleenroll", "simplereenroll", "serverkeygen"):
            assert answer.status in (401, 403), (who, asked, answer.text)
        if path in ODD_PATHS and method != "CONNECT":  # what follows CONNECT is no path
            assert answer.status == 404, (who, asked, answer.status)


async def test_the_admin_listener_serves_nothing_of_est_and_the_other_way_round(est: EstHarness) -> None:
    assert (await est.send("GET", "/.well-known/est/cacerts", server="admin")).status == 404
    assert (await est.send("GET", "/healthz", server="est")).status == 404
