"""Work that lasts: it runs while the block does, ends with it, and what it dies of is its watcher's."""

import asyncio

import pytest

from fleet.runtime.background import background


async def test_it_has_ended_when_the_block_has() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with background(work(), "work") as task:
        await begun.wait()
        assert not ended.is_set()
        assert task.get_name() == "work"
    assert ended.is_set()
    assert task.cancelled()


async def test_one_that_swallows_a_cancellation_is_told_again() -> None:
    begun, swallowed = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.set()
        await asyncio.Event().wait()

    async with background(work(), "work") as task:
        await begun.wait()
    assert swallowed.is_set()
    assert task.cancelled()


async def test_what_it_dies_of_is_told_to_who_watches_and_to_nobody_else() -> None:
    async def work() -> None:
        raise OSError("the disk is gone")

    async with background(work(), "work") as task:
        await asyncio.wait((task,))
        with pytest.raises(OSError, match="the disk is gone"):
            task.result()


async def test_what_ends_the_block_is_raised() -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    with pytest.raises(LookupError):
        async with background(work(), "work"):
            raise LookupError
