"""The broker behind the gateway: whichever of four it is, a session gets its own connection to it.

upstream = await start_upstream("auto", run_dir, models)

auto                mosquitto when it is installed, the embedded broker otherwise
mosquitto           our own, private and supervised (mosquitto.py)
embedded            amqtt in a child process, MQTT 3.1.1 only (embedded.py)
mqtt://HOST:PORT    any broker or cluster that takes the user name's word for who connects
unix:PATH           the same on a Unix socket
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from fleet.domain.device import Model
from fleet.domain.errors import Invalid
from fleet.servers.gateway.private_socket import connect_unix

CONNECT_SECONDS_MAX = 8.0  # less than a session may take to open
PORT = 1883  # MQTT 5.0, 4.2: registered for MQTT without TLS

Factory = Callable[[], asyncio.BaseProtocol]


class Upstream(Protocol):
    """Where sessions go."""

    @property
    def speaks_v5(self) -> bool: ...

    async def connect(self, factory: Factory) -> None:
        """Make a connection whose protocol is `factory()`. Raises: OSError, TimeoutError."""
        ...

    async def set_models(self, models: Sequence[Model]) -> None:
        """The models are now these: a broker of our own guards their topics too. Raises: OSError, TimeoutError."""
        ...

    def describe(self) -> str:
        """What it is and where an application on this machine finds it, for a person to read."""
        ...

    async def close(self) -> None:
        """Stop what was started. Safe to call twice."""
        ...


class AddressUpstream:
    """A broker somewhere else, on TCP. It must let the gateway in under any user name, and nobody else."""

    speaks_v5 = True

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port

    async def connect(self, factory: Factory) -> None:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            await asyncio.get_running_loop().create_connection(factory, self._host, self._port)

    async def set_models(self, models: Sequence[Model]) -> None:
        """Its access rules are its owner's."""

    def describe(self) -> str:
        return f"the broker at mqtt://{self._host}:{self._port}"

    async def close(self) -> None:
        """It is not ours to stop."""


class SocketUpstream:
    """A broker on this machine, on a Unix socket. As AddressUpstream."""

    speaks_v5 = True

    def __init__(self, path: Path) -> None:
        self._path = path

    async def connect(self, factory: Factory) -> None:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            await connect_unix(self._path, factory)

    async def set_models(self, models: Sequence[Model]) -> None:
        """Its access rules are its owner's."""

    def describe(self) -> str:
        return f"the broker at unix:{self._path}"

    async def close(self) -> None:
        """It is not ours to stop."""


async def start_upstream(spec: str, run_dir: Path, models: Sequence[Model]) -> Upstream:
    """The broker that `spec` names, started and answering when it is ours. `run_dir` holds its socket and files.

    Raises: Invalid (`bad-upstream`, `no-mosquitto`). OSError, TimeoutError: it did not start.
    """
    # Here, so that a gateway before somebody else's broker does without either.
    from fleet.servers.gateway.embedded import Embedded
    from fleet.servers.gateway.mosquitto import Mosquitto, mosquitto_program

    kind, _, rest = spec.partition(":")
    match kind:
        case "auto" | "mosquitto" if not rest:
            program = mosquitto_program()
            if program is not None:
                return await Mosquitto.start(program, run_dir, models)
            if kind == "mosquitto":
                raise Invalid("no-mosquitto", "mosquitto is not installed.", "Install it, or use --upstream embedded.")
            return await Embedded.start(run_dir)
        case "embedded" if not rest:
            return await Embedded.start(run_dir)
        case "unix" if rest:
            return SocketUpstream(Path(rest))
        case "mqtt" if rest.startswith("//"):
            return _at_address(rest[2:])
    raise _bad(spec)


def _at_address(text: str) -> AddressUpstream:
    host, colon, port = text.rstrip("/").rpartition(":")
    if not colon or port.endswith("]"):
        host, port = text.rstrip("/"), str(PORT)
    if not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise _bad(f"mqtt://{text}")
    return AddressUpstream(host.strip("[]"), int(port))


def _bad(spec: str) -> Invalid:
    return Invalid(
        "bad-upstream",
        f"{spec[:80]!r} is not an upstream.",
        "Use auto, mosquitto, embedded, mqtt://HOST:PORT or unix:PATH.",
    )
