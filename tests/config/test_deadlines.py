"""Deadlines of many entries on a simulated clock: the order, one timer, and entries that leave."""

import asyncio

from fleet.config.deadlines import Deadlines
from tests.simulated_time import run


def test_entries_are_due_in_order_and_who_has_left_is_not() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        begun, ended = loop.time(), list[tuple[str, float]]()

        def end(entry: str) -> None:
            assert deadlines.leave(entry)
            ended.append((entry, loop.time() - begun))

        deadlines = Deadlines[str](loop, 10.0, end)
        for entry in ("a", "b", "c"):
            deadlines.enter(entry)
            await asyncio.sleep(1)
        assert (deadlines.oldest(), deadlines.age("b")) == ("a", 2.0)
        deadlines.enter("a")  # anew
        assert deadlines.leave("b")
        assert not deadlines.leave("b")
        await asyncio.sleep(60)
        assert ended == [("c", 12.0), ("a", 13.0)]
        deadlines.enter("d")
        deadlines.stop()
        deadlines.stop()
        await asyncio.sleep(60)
        assert (len(ended), len(deadlines), deadlines.oldest()) == (2, 0, None)

    run(main())
