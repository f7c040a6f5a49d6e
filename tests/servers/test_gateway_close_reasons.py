"""Close reasons: what the log, the device and the broker are sent for each, written out."""

import re
from pathlib import Path

from fleet.config.settings import Settings
from fleet.servers import gateway
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.close_codes import MEANINGS, close_codes_table
from fleet.servers.gateway.close_reasons import CloseReason, CloseSession, connect_refused
from fleet.wire.mqtt.codes import Reason

PAGE = Path(gateway.__file__).parent / "README.md"

# name: log code, DISCONNECT, CONNACK, whether the broker publishes the will; 0: none
SESSION = {
    "CLIENT_DISCONNECTED": ("client-disconnected", 0, 0x88, True),
    "CLIENT_GONE": ("client-gone", 0, 0, True),
    "BROKER_CLOSED": ("broker-closed", 0, 0x88, True),
    "BROKER_REJECTED": ("broker-rejected", 0, 0x88, True),
    "BROKER_REFUSED": ("broker-refused", 0, 0, True),
    "BROKER_LOST": ("broker-lost", 0x8B, 0x88, True),
    "BROKER_BROKE_PROTOCOL": ("broker-broke-protocol", 0x80, 0x88, True),
    "TAKEN_OVER": ("taken-over", 0x8E, 0x88, True),
    "SHUTTING_DOWN": ("shutting-down", 0x8B, 0x88, False),
    "ANOTHER_SERVER": ("use-another-server", 0x9C, 0x88, False),
    "SERVER_RESTARTING": ("server-restarting", 0x8B, 0x88, False),
    "DEVICE_ENDED": ("device-ended", 0x98, 0x8A, False),
    "CREDENTIAL_ENDED": ("credential-ended", 0x87, 0x87, False),
    "DISTRUSTED": ("certificate-distrusted", 0x87, 0x87, False),
    "KICKED": ("kicked", 0x98, 0x88, False),
    "KICKED_WITH_WILL": ("kicked-with-will", 0x98, 0x88, True),
    "POLICY_CHANGED": ("policy-changed", 0x87, 0x87, False),
    "EVENTS_MISSED": ("events-missed", 0x89, 0x88, False),
    "CERTIFICATE_EXPIRED": ("certificate-expired", 0xA0, 0x87, True),
    "CONNECT_TIMEOUT": ("connect-timeout", 0, 0, True),
    "NOT_CONNECT": ("not-connect", 0, 0, True),
    "TOO_MANY_SESSIONS": ("too-many-sessions", 0, 0, True),
    "MALFORMED": ("malformed", 0x81, 0x81, True),
    "PROTOCOL_ERROR": ("protocol-error", 0x82, 0x82, True),
    "TOO_LARGE": ("too-large", 0x95, 0x95, True),
    "ALIAS": ("topic-alias", 0x94, 0x88, True),
    "ALIASED_TOPIC_TOO_LONG": ("topic-alias-length", 0x97, 0x88, True),
    "QOS_REFUSED": ("qos-refused", 0x9B, 0x88, True),
    "PUBLISH_REFUSED": ("publish-refused", 0x87, 0x87, True),
    "KEEP_ALIVE_EXPIRED": ("keep-alive", 0x8D, 0x88, True),
    "TOO_SLOW": ("too-slow", 0x97, 0x88, True),
    "QUOTA": ("quota", 0x97, 0x97, True),
    "TOO_MANY_FILTERS": ("quota", 0x97, 0x97, True),
    "MESSAGE_RATE": ("message-rate", 0x96, 0x88, True),
    "BYTE_RATE": ("byte-rate", 0x97, 0x88, True),
}
CONNECT = {
    "UNSUPPORTED_VERSION": ("unsupported-version", 0, 0x84, True),
    "MALFORMED_CONNECT": ("malformed-connect", 0, 0x81, True),
    "MALFORMED_CONNECT_311": ("malformed-connect", 0, 0, True),
    "CONNECT_PROTOCOL_ERROR": ("protocol-error", 0, 0x82, True),
    "CONNACK_TOO_LARGE": ("connack-too-large", 0, 0x95, True),
    "SESSION_QUOTA": ("session-quota", 0, 0x97, True),
    "WILL_QUOTA": ("will-quota", 0, 0x97, True),
    "CONNECT_TOO_LARGE": ("too-large", 0, 0x95, True),
    "CONNECT_TOO_LARGE_311": ("too-large", 0, 0, True),
    "WILL_RESPONSE_INVALID": ("will-response-topic", 0, 0x82, True),
    "DOT_IN_ID": ("dot-refused", 0, 0x85, True),
    "DOT_IN_WILL": ("dot-refused", 0, 0x87, True),
    "AUTH_METHOD": ("auth-method", 0, 0x8C, True),
    "FEED_DOWN": ("feed-down", 0, 0x88, True),
    "INTERNAL": ("internal", 0, 0x88, True),
    "OPEN_TIMEOUT": ("open-timeout", 0, 0x88, True),
    "BROKER_UNREACHABLE": ("broker-unreachable", 0, 0x88, True),
    "BROKER_SILENT": ("broker-silent", 0, 0x88, True),
    "BROKER_LOST_BEFORE_CONNACK": ("broker-lost", 0, 0x88, True),
}


def test_the_table() -> None:
    found = {name: value for name, value in vars(close_reasons).items() if isinstance(value, CloseReason)}
    for event, table in (("mqtt.session", SESSION), ("mqtt.connect", CONNECT)):
        assert {
            name: (reason.code, reason.disconnect or 0, reason.connack or 0, reason.publishes_will)
            for name, reason in found.items()
            if reason.event == event
        } == table
    assert len(found) == len(SESSION) + len(CONNECT)


def test_each_packet_says_why_in_sentences() -> None:
    found = {name: value for name, value in vars(close_reasons).items() if isinstance(value, CloseReason)}
    silent = {name for name, reason in found.items() if not reason.text}
    # The device is gone, has closed itself or has the broker's reason, or it is one of 3.1.1, or nothing is sent.
    assert silent == {
        *("CLIENT_DISCONNECTED", "CLIENT_GONE", "BROKER_CLOSED", "BROKER_REFUSED", "CONNECT_TIMEOUT", "NOT_CONNECT"),
        "BROKER_REJECTED",
        *("TOO_MANY_SESSIONS", "MALFORMED_CONNECT_311", "CONNECT_TOO_LARGE_311", "PUBLISH_REFUSED"),
    }
    for reason in found.values():
        assert reason.text == "" or (reason.text.endswith(".") and reason.text.isascii() and len(reason.text) <= 120)
    assert close_reasons.device_ended("revoked").text == "The device has been revoked."
    assert close_reasons.device_ended("revoked").code == close_reasons.DEVICE_ENDED.code


def test_codes_are_unique_within_their_event() -> None:
    for table in (SESSION, CONNECT):
        # A CONNECT that is malformed or too large has one code, and no CONNACK in 3.1.1.
        # What exceeds a number has one code, and sentences of its own; so has a dot.
        others = ("TOO_MANY_FILTERS", "DOT_IN_WILL")
        rows = [row for name, row in table.items() if not name.endswith("_311") and name not in others]
        assert len({row[0] for row in rows}) == len(rows)


def test_a_refusal_of_connect() -> None:
    assert connect_refused("x", Reason.BANNED) == CloseReason("x", None, Reason.BANNED, True, "mqtt.connect")
    assert CloseReason("y") == CloseReason("y", None, Reason.SERVER_UNAVAILABLE, True, "mqtt.session")


def test_the_exception_names_its_reason() -> None:
    error = CloseSession(close_reasons.QUOTA)
    assert error.reason is close_reasons.QUOTA
    assert str(error) == "quota"


def test_the_page_has_the_table_of_codes() -> None:
    table = close_codes_table()
    assert table in PAGE.read_text()
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert {(event, code) for event, code, *_ in rows} == {
        *(("mqtt.session", row[0]) for row in SESSION.values()),
        *(("mqtt.connect", row[0]) for row in CONNECT.values()),
    }
    assert all(meaning.endswith(".") for _, _, meaning, *_ in rows)
    by_code = {(event, code): cells for event, code, *cells in rows}
    assert by_code["mqtt.connect", "too-large"][1:3] == ["", "0x95"]
    assert by_code["mqtt.session", "too-slow"][1:] == ["0x97", "0x88", "The request did not arrive in time."]


def test_no_meaning_is_of_a_code_that_has_a_reason_string() -> None:
    found = [value for value in vars(close_reasons).values() if isinstance(value, CloseReason)]
    assert set(MEANINGS) == {each.code for each in found} - {each.code for each in found if each.text}


def test_the_page_names_settings_that_exist() -> None:
    named = set(re.findall(r"`([a-z_]+_(?:max|min|seconds))`", PAGE.read_text()))
    assert {"connect_size_max", "packet_size_max"} <= named <= set(Settings.__struct_fields__)
