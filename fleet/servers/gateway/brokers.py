"""Which broker stands behind the gateway, by the name that a person gives it.

upstream = await start_upstream("auto", run_dir, models)

auto                mosquitto when it is installed, the embedded broker otherwise
mosquitto           our own, private and supervised (mosquitto.py)
embedded            amqtt in a child process, MQTT 3.1.1 only (embedded.py)
mqtt://HOST:PORT    any broker or cluster that takes the user name's word for who connects
unix:PATH           the same on a Unix socket
"""

from collections.abc import Sequence
from pathlib import Path

from fleet.domain.device import Model
from fleet.domain.errors import Invalid
from fleet.servers.gateway.embedded import Embedded
from fleet.servers.gateway.mosquitto import Mosquitto, mosquitto_program
from fleet.servers.gateway.upstream import AddressUpstream, SocketUpstream, Upstream

PORT = 1883  # MQTT 5.0, 4.2: registered for MQTT without TLS


async def start_upstream(spec: str, run_dir: Path, models: Sequence[Model]) -> Upstream:
    """The broker that `spec` names, started and answering when it is ours. `run_dir` holds its socket and files.

    Raises: Invalid (`bad-upstream`, `no-mosquitto`). OSError, TimeoutError: it did not start.
    """
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
