"""Kept OCSP answers: bounded, ended by an event about their holder, and none made of an older read is kept."""

from datetime import UTC, datetime, timedelta

from fleet.domain.changes import Event, EventKind
from fleet.services.ocsp import ResponseCache

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=15)


def kept(*names: str, entries_max: int = 3) -> ResponseCache[str]:
    answers: ResponseCache[str] = ResponseCache(entries_max)
    for name in names:
        answers.add(name.encode(), f"good {name}", name, LATER, answers.generation)
    return answers


def test_the_one_that_was_used_longest_ago_goes_first() -> None:
    answers = kept("a", "b", "c")
    assert answers.find(b"a", NOW) == "good a"
    answers.add(b"d", "good d", "d", LATER, 0)
    assert len(answers) == 3
    assert [answers.find(name, NOW) for name in (b"a", b"b", b"c", b"d")] == ["good a", None, "good c", "good d"]


def test_one_is_given_until_its_time_and_replaced_by_a_new_one() -> None:
    answers = kept("a")
    assert answers.find(b"a", LATER - timedelta(microseconds=1)) == "good a"
    assert answers.find(b"a", LATER) is None
    assert len(answers) == 0
    answers = kept("a")
    answers.add(b"a", "newer", "a", LATER, 0)
    assert (answers.find(b"a", NOW), len(answers)) == ("newer", 1)


async def test_an_event_ends_the_answers_about_its_holder_and_no_other() -> None:
    answers = kept("a", "b")
    answers.add(b"a2", "good a2", "a", LATER, 0)
    await answers.on_event(Event(EventKind.CREDENTIAL_ISSUED, "a"))
    assert len(answers) == 3
    await answers.on_event(Event(EventKind.CREDENTIAL_ENDED, "a", "ab" * 32))
    assert [answers.find(name, NOW) for name in (b"a", b"a2", b"b")] == [None, None, "good b"]
    for kind in (EventKind.DEVICE_STATE, EventKind.CLAIM_STATE):
        answers = kept("a")
        await answers.on_event(Event(kind, "a", "suspended"))
        assert len(answers) == 0


async def test_what_was_read_before_an_event_is_not_kept() -> None:
    answers = kept()
    read_at = answers.generation
    await answers.on_event(Event(EventKind.DEVICE_STATE, "a", "revoked"))
    answers.add(b"a", "good a", "a", LATER, read_at)
    assert len(answers) == 0
    read_at = answers.generation
    answers.clear()
    answers.add(b"a", "good a", "a", LATER, read_at)
    assert len(answers) == 0
