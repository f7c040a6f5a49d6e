"""Table of the codes with which sessions close and CONNECTs are refused, for the gateway's page.

`python -m fleet.servers.gateway.close_codes` prints it; a test keeps the page and the table equal.
"""

import sys
from collections import defaultdict

from fleet.config.markdown import table_row
from fleet.domain.error_codes import ERROR_CODES
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.close_reasons import CloseReason
from fleet.wire.mqtt.codes import Reason

MEANINGS = {
    "client-disconnected": "The client sent DISCONNECT.",
    "client-gone": "The client closed the connection, or it was lost.",
    "broker-closed": "The broker sent DISCONNECT, which the client got.",
    "broker-rejected": "The same, for a packet that is malformed or not allowed.",
    "broker-refused": "The broker's CONNACK refused; the line of `mqtt.connect` has `broker-refused-XX`, its code.",
    "connect-timeout": "No complete CONNECT within ten seconds.",
    "not-connect": "The first packet is not CONNECT.",
    "too-many-sessions": "Too many connections in all, or more than four with the certificate.",
    "publish-refused": "A PUBLISH of MQTT 3.1.1 that the model does not allow, where the model closes.",
}
"""Of codes without a Reason String."""

_HEAD = """\
| event | code | meaning | DISCONNECT | CONNACK | HTTP code of that name |
| --- | --- | --- | --- | --- | --- |
"""


def close_codes_table() -> str:
    """In Markdown: a line for each event and code."""
    found: dict[tuple[str, str], list[CloseReason]] = defaultdict(list)
    for each in vars(close_reasons).values():
        if isinstance(each, CloseReason):
            found[each.event, each.code].append(each)
    return _HEAD + "".join(_row(event, code, found[event, code]) for event, code in sorted(found))


def _row(event: str, code: str, reasons: list[CloseReason]) -> str:
    meaning = MEANINGS.get(code) or " ".join(dict.fromkeys(each.text for each in reasons if each.text))
    http = ERROR_CODES.get(code)
    cells = (
        f"`{event}`",
        f"`{code}`",
        meaning,
        _codes([each.disconnect for each in reasons]),
        _codes([each.connack for each in reasons]),
        http.meaning if http is not None else "",
    )
    return table_row(cells)


def _codes(reasons: list[Reason | None]) -> str:
    return ", ".join(f"0x{each:02X}" for each in dict.fromkeys(reasons) if each is not None)


if __name__ == "__main__":
    sys.stdout.write(close_codes_table())
