"""Reports of devices: verified by the certificate that they come with, and kept in place of the last one."""

from datetime import datetime

from cryptography import x509

from fleet.domain.device_report import DeviceReport
from fleet.domain.errors import Refused
from fleet.domain.ports import Registry
from fleet.servers.http import Exchange
from fleet.servers.http_response import Response
from fleet.servers.refusals import HttpRefused
from fleet.services.identity import identify
from fleet.wire.device_report import CONTENT_TYPE, REPORT_SIZE_MAX, decode_report


async def take_report(registry: Registry, exchange: Exchange, now: datetime) -> Response:
    """Keep the report in the body: of the device whose certificate is presented, and signed with its key.

    Raises: Unauthenticated, Refused: what `identify` raises, `not-a-device`, `not-your-identity`. HttpRefused,
    WireError: the body cannot be used. Unavailable.
    """
    der = exchange.peer.certificate_der
    facts = await identify(registry, exchange.peer, now)
    exchange.serial = facts.credential.serial
    if facts.device is None or der is None:
        raise Refused("not-a-device", "Only a device's certificate is accepted here.")
    exchange.holder = facts.device.id
    if exchange.request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != CONTENT_TYPE:
        raise HttpRefused(415, "bad-content-type", f"The body must be {CONTENT_TYPE}.")
    body = await exchange.body(REPORT_SIZE_MAX)
    signed = decode_report(body, x509.load_der_x509_certificate(der).public_key())
    if signed.device_id != facts.device.id:
        raise Refused("not-your-identity", "The report names another device.")
    report = DeviceReport(facts.device.id, now, facts.credential.serial, signed.text, signed.signature)
    await registry.keep_report(report)
    return Response(204, b"", {})
