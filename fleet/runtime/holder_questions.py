"""A worker's questions whether another holds a session of a device: answered by all others, or not known."""

import asyncio
from collections.abc import Callable, Iterable

QUESTIONS_MAX = 64  # at once: a broker that is gone ends every session
HELD_SECONDS_MAX = 0.25  # the answers take a millisecond


class HolderQuestions:
    """`ask` sends a question about a device to the other workers."""

    def __init__(self, ask: Callable[[str], None]) -> None:
        self._ask = ask
        self._answers: dict[str, asyncio.Future[bool | None]] = {}
        self._unanswered: dict[str, set[int]] = {}
        """By device: the workers that were asked and have not said no."""

    async def held_elsewhere(self, device_id: str) -> bool | None:
        """Whether another worker holds a session of the device. None: it is not known, since there are too many
        questions, or one of them has not answered in time.
        """
        answer = self._answers.get(device_id)
        if answer is None:
            if len(self._answers) >= QUESTIONS_MAX:
                return None
            answer = self._begin(device_id)
        return await asyncio.shield(answer)  # others may wait for the same

    def on_asked(self, device_id: str, workers: Iterable[int]) -> None:
        """They get the question; a worker that does not run has no session."""
        if device_id in self._answers:
            self._unanswered[device_id] = set(workers)
            self._end_if_all_said_no(device_id)

    def on_held(self, device_id: str) -> None:
        self._end(device_id, True)

    def on_not_held(self, device_id: str, worker: int) -> None:
        if device_id in self._unanswered:
            self._unanswered[device_id].discard(worker)
            self._end_if_all_said_no(device_id)

    def _begin(self, device_id: str) -> "asyncio.Future[bool | None]":
        loop = asyncio.get_running_loop()
        answer = self._answers[device_id] = loop.create_future()
        deadline = loop.call_later(HELD_SECONDS_MAX, self._end, device_id, None)
        answer.add_done_callback(lambda _: deadline.cancel())
        self._ask(device_id)
        return answer

    def _end_if_all_said_no(self, device_id: str) -> None:
        if not self._unanswered[device_id]:
            self._end(device_id, False)

    def _end(self, device_id: str, held: bool | None) -> None:
        self._unanswered.pop(device_id, None)
        if (answer := self._answers.pop(device_id, None)) is not None:
            answer.set_result(held)
