"""Demo subscriber: an application that subscribes at the broker itself, on its private socket, and counts."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from fleet.demo.harness import PATIENCE_SECONDS, StepFailed

BACKEND = "_backend"


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name for the socket at `path` that fits the 107 bytes of a socket address, for any folder depth."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class Subscriber:
    """Subscribe while the block runs; payloads are kept in the order of arrival."""

    def __init__(self, home: Path, topic_filter: str) -> None:
        self._socket = home / "run" / "broker.sock"
        self._filter = topic_filter
        self._payloads: list[str] = []
        self._changed = threading.Condition()
        self._subscribed = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="demo-subscriber", transport="unix")
        self._client.username_pw_set(BACKEND)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._on_message

    def __enter__(self) -> Self:
        with short_path(self._socket) as path:
            self._client.connect(path)
        self._client.loop_start()
        if not self._subscribed.wait(PATIENCE_SECONDS):
            raise StepFailed("the broker did not take the demo's subscription")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def seen(self) -> list[str]:
        with self._changed:
            return list(self._payloads)

    def wait_until(self, enough: Callable[[list[str]], bool], what: str) -> None:
        """Raises: StepFailed: too few messages in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: enough(self._payloads), PATIENCE_SECONDS):
                raise StepFailed(f"a subscriber at the broker waited for {what} and saw {len(self._payloads)}")

    def _on_connect(self, client: mqtt.Client, _u: Any, _f: Any, _r: Any, _p: Any) -> None:
        client.subscribe(self._filter, qos=1)

    def _on_message(self, _c: mqtt.Client, _u: Any, message: mqtt.MQTTMessage) -> None:
        with self._changed:
            self._payloads.append(message.payload.decode())
            self._changed.notify_all()
