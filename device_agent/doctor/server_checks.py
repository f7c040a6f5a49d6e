"""Checks of the way to the servers, and of what these think of the device: name, port, TLS, clock, EST, MQTT.

Nothing is enrolled, renewed or published. If no agent runs, the gateway is asked by one connection with the current
certificate, which keeps the session; the candidate is never used.
"""

import http.client
import re
import select
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import partial

from device_agent.core import Setback
from device_agent.doctor.findings import TIMEOUT_SECONDS, Finding, Patient, Server, State
from device_agent.doctor.protocols import HTTP, MQTT, protocol_at
from device_agent.link.mqtt_link import MQTT_3, MQTT_5, Connected, Lost, MqttLink, Target
from device_agent.signals import Waker
from device_agent.store import last_refusal
from device_agent.times import shown
from fleet.est_client.client import EstClient, Policy
from fleet.est_client.errors import ClientError
from fleet.est_client.server_checks import NOT_PINNED, also_check
from fleet.est_client.tls import client_context
from fleet.est_client.transport import Deadline, connect, open_connection
from fleet.est_client.validity import clock_is_credible
from fleet.wire.est import WELL_KNOWN

SKEW_SECONDS_MAX = 300.0  # issuers backdate certificates by about that
NAMES_SHOWN_MAX = 4
_LIBRARYS_OWN = re.compile(r"\[SSL: \w+\] ?| ?\(_ssl\.c:\d+\)")  # its constant, source file and line


def names_resolve(patient: Patient) -> Iterator[Finding]:
    for server in patient.reachable:
        try:
            found = {str(each[4][0]) for each in socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)}
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            advice = "Check its spelling in agent.toml, and /etc/resolv.conf."
            yield patient.fail(server, "dns", f"The name of the {server} has no address: {why}.", advice)
            continue
        yield Finding("dns", State.OK, f"{server}: {', '.join(sorted(found)[:NAMES_SHOWN_MAX])}.")


def ports_answer(patient: Patient) -> Iterator[Finding]:
    for server in patient.reachable:
        try:
            connect(server.host, server.port, Deadline(TIMEOUT_SECONDS)).close()
        except OSError as error:
            why = "it does not answer" if isinstance(error, TimeoutError) else (error.strerror or error)
            advice = f"{server.port_advice} Is it served, and do firewalls on the way let it through?"
            yield patient.fail(server, "tcp", f"The {server} cannot be reached: {why}.", advice)
            continue
        yield Finding("tcp", State.OK, f"The {server} accepts connections.")


def servers_are_trusted(patient: Patient) -> Iterator[Finding]:
    """TLS: the certificate of each server verifies, by its name and our anchors."""
    try:
        context = _context(patient)
    except ClientError as error:  # found by an earlier check
        patient.failed.update(patient.servers)
        yield Finding("tls", State.SKIPPED, error.message, "See the findings above.")
        return
    for server in patient.reachable:
        try:
            with connect(server.host, server.port, Deadline(TIMEOUT_SECONDS)) as raw:
                raw.settimeout(TIMEOUT_SECONDS)
                with context.wrap_socket(raw, server_hostname=server.host) as stream:
                    version = stream.version()
        except ssl.SSLCertVerificationError as error:
            advice = _ADVICE.get(error.verify_code, "Check ca.pem, and the host name in agent.toml.")
            detail = f"The certificate of the {server} does not verify: {error.verify_message.rstrip('.')}."
            yield patient.fail(server, "tls", detail, advice)
        except OSError as error:
            why = (error.reason if isinstance(error, ssl.SSLError) else None) or error
            advice = f"{server.port_advice} A proxy or a captive portal on the way looks like this, too."
            yield patient.fail(server, "tls", f"TLS with the {server} failed: {why}.", advice)
        else:
            yield Finding("tls", State.OK, f"The {server} is trusted, {version}.")


def clock_is_right(patient: Patient) -> Iterator[Finding]:
    """The system's, compared with the Date of a server whose certificate verifies, its dates aside."""
    system = patient.system
    if not clock_is_credible(system, patient.current.lifetime if patient.current else None):
        detail = f"The clock is not set: {shown(system)}."
        yield Finding(
            "clock", State.FAILED, detail, "Set it, as by NTP (timedatectl); the agent connects all the same."
        )
        return
    server_time = next(filter(None, (_time_of(patient, each) for each in patient.servers if each.kind == "EST")), None)
    if server_time is None:
        yield Finding("clock", State.SKIPPED, f"{shown(system)}; no EST server to compare it with.")
        return
    skew = (system - server_time).total_seconds()
    detail = f"{shown(system)}, {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the EST server."
    if abs(skew) > SKEW_SECONDS_MAX:
        yield Finding("clock", State.FAILED, detail, "Set it, as by NTP (timedatectl), or check the server's.")
    else:
        yield Finding("clock", State.OK, detail)


def est_answers(patient: Patient) -> Iterator[Finding]:
    """What the EST server says to this certificate: CA certificates, and when it suggests to renew."""
    for server in patient.servers:
        if server.kind != "EST":
            continue
        if server in patient.failed:
            yield Finding("est", State.SKIPPED, f"The {server} cannot be asked.")
            continue
        identity = patient.current
        check_time, at = patient.reading.judges_dates
        policy = Policy(TIMEOUT_SECONDS, patience_seconds=0.0, check_time=check_time, at=at, pins=patient.config.pins)
        try:
            client = EstClient(server.url, patient.config.ca_file, identity.files if identity else None, policy=policy)
            found = f"The {server} offers {len(client.cacerts())} CA certificates"
            window = client.renewal_info(identity.certificate.fingerprint)[0] if identity else None
        except ClientError as error:
            if _answers(patient, server, MQTT):
                yield Finding("est", State.FAILED, f"At the {server}, MQTT answers.", server.port_advice)
            else:
                yield Finding("est", State.FAILED, error.message, error.advice or "Ask the fleet's operator.")
            continue
        if window and window[0] <= patient.now:
            detail = f"{found}, and suggests to renew since {shown(window[0])}."
            yield Finding("est", State.WARNING, detail, "Run: device-agent renew, and see why the agent has not.")
        else:
            yield Finding(
                "est", State.OK, f"{found}{f', and suggests to renew from {shown(window[0])}' if window else ''}."
            )


def gateway_admits(patient: Patient) -> Iterator[Finding]:
    """The running agent's connection, or the gateway's CONNACK to the current certificate."""
    if patient.agent:
        error = str(patient.agent.get("last_error") or "it is still connecting").rstrip(".")
        if patient.agent.get("connected"):
            yield Finding("mqtt", State.OK, f"The agent is connected, MQTT {patient.agent.get('protocol')}.")
        else:
            detail, refusal = f"The agent is not connected: {error}.", last_refusal.read(patient.config.home)
            advice = (refusal.advice or "It is the server that refuses: what helps is said above.") if refusal else ""
            yield Finding("mqtt", State.FAILED, detail, advice or "See the other findings, and its log.")
            for server in patient.reachable:
                if server.endpoint is not None and not server.endpoint.path and _answers(patient, server, HTTP):
                    yield _http_instead(server)
        return
    if patient.agent_is_silent:
        detail = "An agent works in this home, and does not answer on its socket."
        yield Finding(
            "mqtt", State.FAILED, detail, "See its log; if it is stuck, restart it: systemctl restart device-agent."
        )
        return
    for server in patient.servers:
        if server.endpoint is None:
            continue
        if server in patient.failed or patient.current is None:
            why = "" if patient.current else " without a certificate"
            yield Finding("mqtt", State.SKIPPED, f"The {server} cannot be asked{why}.")
            continue
        problem = _refusal(patient, server)
        if problem and not server.endpoint.path and _answers(patient, server, HTTP):
            yield _http_instead(server)
        elif problem:
            detail = f"The {server} does not admit this device: {problem}."
            advice = (
                "Ask the fleet's operator; if the certificate has expired or is revoked, enroll again with a new token."
            )
            yield Finding("mqtt", State.FAILED, detail, advice)
        else:
            yield Finding("mqtt", State.OK, f"The {server} admits this device; no agent runs.")


def _http_instead(server: Server) -> Finding:
    return Finding("mqtt", State.FAILED, f"At the {server}, HTTP answers, as on an EST port.", server.port_advice)


def _answers(patient: Patient, server: Server, protocol: str) -> bool:
    """Whether it is this protocol that answers there."""
    try:
        return protocol_at(server.host, server.port, _context(patient)) == protocol
    except ClientError:
        return False


_ADVICE = {
    9: "Check this device's clock, or the server's certificate: it is not valid yet.",
    10: "Check this device's clock, or renew the server's certificate: it has expired.",
    18: "It is self-signed: ca.pem is of another fleet, or something on the way answers instead.",
    19: "ca.pem is of another fleet, or something on the way answers instead.",
    20: "ca.pem is of another fleet, or the server does not send its chain.",
    NOT_PINNED: "Check [trust] pins in agent.toml, or something on the way answers instead.",
    62: "The host name in agent.toml is not in the server's certificate.",
    64: "The address in agent.toml is not in the server's certificate.",
}
"""By OpenSSL's X509_V_ERR_*."""


def _context(patient: Patient) -> ssl.SSLContext:
    certificate = patient.current.files if patient.current else None
    check_time, at = patient.reading.judges_dates
    context = client_context(patient.config.ca_file, certificate, check_time=check_time)
    if patient.config.pins or at is not None:
        also_check(context, pins=patient.config.pins, at=at)
    return context


def _time_of(patient: Patient, server: Server) -> datetime | None:
    """The server's time, from the Date of an answer: RFC 9110, 6.6.1."""
    with suppress(ClientError, OSError, ValueError, TypeError, OverflowError, http.client.HTTPException):
        context = client_context(patient.config.ca_file, check_time=False)
        connection, timed = open_connection(server.host, server.port, context, Deadline(TIMEOUT_SECONDS))
        with timed.stream:
            connection.request("GET", f"{WELL_KNOWN}/cacerts", headers={"Connection": "close"})
            with connection.getresponse() as response:
                found = parsedate_to_datetime(response.headers.get("Date", ""))
        return found if found.tzinfo is not None else None
    return None


def _refusal(patient: Patient, server: Server) -> str:
    """Why the gateway refuses us; "" if it admits us."""
    assert server.endpoint  # noqa: S101
    config, endpoint = patient.config, server.endpoint
    target = Target(
        endpoint.host,
        endpoint.port,
        config.device_id,
        config.keepalive_seconds,
        config.session_expiry_seconds,
        endpoint.path,
    )
    lost: Lost | None = None
    for protocol in (MQTT_5, MQTT_3):
        waker = Waker()
        try:
            lost = _first_answer(MqttLink(target, partial(_context, patient), protocol, waker.wake), waker)
        finally:
            waker.close()
        if lost is None or lost.setback is not Setback.PROTOCOL:
            break
    return _LIBRARYS_OWN.sub("", lost.reason).rstrip(".") if lost is not None else ""


def _first_answer(link: MqttLink, waker: Waker) -> Lost | None:
    """None once the server has accepted us."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    link.open()
    try:
        while (left := deadline - time.monotonic()) > 0:
            watched = [each for each in (waker.descriptor, link.socket) if each is not None]
            writing = [link.socket] if link.socket is not None and link.wants_write else []
            readable, writable, _ = select.select(watched, writing, [], min(left, 1.0))
            if waker.descriptor in readable:
                waker.clear()
            link.tick()
            if link.socket is not None:
                link.handle_io(link.socket in readable, link.socket in writable)
            for event in link.events():
                if isinstance(event, Connected | Lost):
                    return event if isinstance(event, Lost) else None
    finally:
        link.close()
    return Lost(Setback.NETWORK, "it did not answer CONNECT in time")
