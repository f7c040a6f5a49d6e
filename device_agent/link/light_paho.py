"""paho's client, without what it imports and never uses here.

It imports urllib.request for the proxies of PySocks alone: HTTP, mail, temporary files and archives, 2 MiB that would
stay in the long-lived process.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_UNUSED = "urllib.request"


@contextmanager
def _left_out(name: str) -> Iterator[None]:
    """An empty module in the place of `name`, unless that is loaded already; later imports get the real one."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = ModuleType(name)
    try:
        yield
    finally:
        del sys.modules[name]


if importlib.util.find_spec("socks") is None:
    with _left_out(_UNUSED):
        import paho.mqtt.client as paho
else:
    import paho.mqtt.client as paho

__all__ = ["paho"]
