"""The broker of a running `fleet serve`, as its home tells commands in run/upstream.json. No secret is in it."""

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from msgspec import Struct

from fleet.config.durable_files import write_file
from fleet.home.layout import Home
from fleet.servers.gateway.broker.upstream import Upstream

NAME = "upstream.json"  # beside serve.lock
SIZE_MAX = 4096  # an address, or a path


class UpstreamInForce(Struct, frozen=True):
    """What `--upstream`, or the setting, has become."""

    address: str
    """As Upstream.address."""
    speaks_v5: bool
    is_ours: bool


@contextmanager
def recorded(home: Home, upstream: Upstream) -> Iterator[None]:
    """The home says so while the block runs. Raises: OSError."""
    found, file = UpstreamInForce(upstream.address, upstream.speaks_v5, upstream.is_ours), home.run / NAME
    write_file(file, msgspec.json.encode(found), secret=True, force=True)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def upstream_in_force(home: Home) -> UpstreamInForce | None:
    """None: no server runs there; that of a server that was killed is read until the next one starts."""
    try:
        with (home.run / NAME).open("rb") as file:
            return msgspec.json.decode(file.read(SIZE_MAX), type=UpstreamInForce)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
