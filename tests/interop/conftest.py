"""Asynchronous tests of this room run on uvloop, as a worker does: with asyncio's loop a write to a transport that the
peer has closed is dropped, with uvloop's it raises.
"""

import asyncio
from collections.abc import Callable, Mapping

import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}
