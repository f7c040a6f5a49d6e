"""paho-mqtt in the scenario of test_clients.py: client.py VERSION HOST PORT DEVICE CA CERTIFICATE KEY LISTENER."""

import json
import queue
import ssl
import sys
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

PATIENCE_SECONDS = 120.0


def main(version: str, host: str, port: str, device: str, ca: str, certificate: str, key: str, listener: str) -> None:
    up, down = f"devices/{device}/up/t", f"devices/{device}/down/#"
    session: dict[str, Any] = {"clean_session": False}
    options: dict[str, Any] = {}
    if version == "5":
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 600
        session, options = {}, {"clean_start": False, "properties": properties}
    events: queue.Queue[Any] = queue.Queue()

    def connected() -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            device,
            protocol=MQTTProtocolVersion(int(version)),
            transport="websockets" if listener == "wss" else "tcp",
            reconnect_on_failure=False,
            **session,
        )
        context = ssl.create_default_context(cafile=ca)
        context.load_cert_chain(certificate, key)
        client.tls_set_context(context)
        client.on_connect = lambda c, u, flags, reason, p: events.put((reason.value, flags.session_present))
        client.on_subscribe = lambda c, u, m, reasons, p: events.put([reason.value for reason in reasons])
        client.on_message = lambda c, u, message: events.put(message.payload.decode())
        client.on_publish = lambda c, u, m, reason, properties: events.put((reason.value, properties))
        client.connect(host, int(port), 30, **options)
        client.loop_start()
        code, present = events.get(timeout=PATIENCE_SECONDS)
        assert code == 0
        client.user_data_set(present)
        return client

    def publish(client: mqtt.Client, topic: str, payload: str, qos: int) -> Any:
        client.publish(topic, payload, qos)
        return events.get(timeout=PATIENCE_SECONDS)

    client = connected()
    client.subscribe(down, 1)
    granted = events.get(timeout=PATIENCE_SECONDS)
    for qos in (0, 1, 2):
        publish(client, up, str(qos), qos)
    code, properties = publish(client, "devices/another/up/t", "denied", 1)
    publish(client, up, "after", 1)
    told = {"code": code, "reason": getattr(properties, "ReasonString", "")}
    print(json.dumps({"granted": granted, "denied": told, "got": events.get(timeout=PATIENCE_SECONDS)}), flush=True)
    sys.stdin.readline()
    client.disconnect()
    client.loop_stop()
    client = connected()
    publish(client, up, "again", 1)
    print(json.dumps({"present": client.user_data_get()}), flush=True)
    client.disconnect()
    client.loop_stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
