"""Acts on many devices from afar: step by step, and between two steps they can be stopped."""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fleet.cli.desk import Order, Went
from fleet.cli.https import Api
from fleet.services.bulk import Outcome, Tally

PATH = "/v1/bulk"


def count_of(api: Api, order: Order) -> int:
    found, _ = api.ask("POST", PATH, {**_body(order), "dry_run": True})
    return int(found["matched"])


def carried_out(api: Api, order: Order, count: int, heard: Callable[[Tally], None]) -> Went:
    """How it went; when Ctrl-C or SIGTERM cut it short, the step that was under way has been finished."""
    tally, body = Tally(), _body(order)
    with _asked_to_stop() as stop:
        heard(tally)
        step, _ = api.ask("POST", PATH, {**body, "expected": count})
        _add(tally, step)
        while step["next"] is not None and not stop:
            heard(tally)
            step, _ = api.ask("POST", PATH, {**body, "cursor": step["next"]})
            _add(tally, step)
    heard(tally)
    return Went(step["bulk"], tally, step["next"] is not None)


def _body(order: Order) -> dict[str, Any]:
    body: dict[str, Any] = {"filter": order.text, "act": order.act, "reason": order.reason}
    if order.retag is not None:
        retag = order.retag
        body |= {"tags": {**dict.fromkeys(retag.remove), **dict(retag.tags)}}
        body |= {"join": sorted(set(retag.join)), "leave": sorted(set(retag.leave))}
    return body


def _add(tally: Tally, step: Mapping[str, Any]) -> None:
    tally.done += step["done"]
    for code, number in step["skipped"].items():
        tally.skipped[code] = tally.skipped.get(code, 0) + number
    tally.failed += [Outcome(each["id"], each["code"], each["why"], is_failure=True) for each in step["failed"]]


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """While the block runs, SIGINT and SIGTERM are noted in the list and end nothing."""
    noted: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda received, _: noted.append(received)) for number in numbers]
    try:
        yield noted
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
