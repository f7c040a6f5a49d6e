"""Log events: one line each, with one reading, as text and as JSON."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fleet.config.logs import Event, FailureLog, JsonFormatter, configure_logging, log_event, quoted


@pytest.fixture(autouse=True)
def _root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("cam-7", "cam-7"),
        (7, "7"),
        (1.5, "1.5"),
        (None, "-"),
        ("", "-"),
        ("two words", '"two words"'),
        ('say "no"', '"say \\"no\\""'),
        ("a=b", '"a=b"'),
        ("line\nevent=forged", '"line\\nevent=forged"'),
        ("\x1b[31m", '"\\u001b[31m"'),
        ("\u202e", '"\\u202e"'),
        ("\x85", '"\\u0085"'),
        ("Größe", "Größe"),
        ("back\\slash", '"back\\\\slash"'),
        (TimeoutError(), "TimeoutError"),
        (ValueError("no room"), '"no room"'),
    ],
)
def test_a_value_has_one_reading(value: object, shown: str) -> None:
    assert quoted(value) == shown


def written(monkeypatch: pytest.MonkeyPatch, log_format: str, **context: object) -> list[str]:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logging("INFO", log_format, **context)
    logger = logging.getLogger("fleet.example")
    log_event(logger, logging.INFO, "worker.ready", worker=1, reason="it works")
    log_event(logger, logging.DEBUG, "not.shown")
    logger.warning("plain %s", "text")
    try:
        raise ValueError("broken")
    except ValueError as error:
        log_event(logger, logging.ERROR, "failed", exc_info=error)
    return stream.getvalue().splitlines()


def test_text_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = written(monkeypatch, "text", worker=3)
    assert lines[0].endswith(' INFO fleet.example worker=3 event=worker.ready worker=1 reason="it works"')
    assert lines[1].endswith(" WARNING fleet.example worker=3 plain text")
    assert lines[-1] == "ValueError: broken"


def test_json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    first, plain, failed = (json.loads(line) for line in written(monkeypatch, "json", node="a"))
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "info",
        "logger": "fleet.example",
        "node": "a",
        "event": "worker.ready",
        "worker": 1,
        "reason": "it works",
    }
    assert plain["message"] == "plain text"
    assert failed["event"] == "failed"
    assert failed["exception"].endswith("ValueError: broken")


def test_json_of_what_json_has_no_type_for() -> None:
    record = logging.LogRecord("fleet", logging.INFO, "", 0, "%s", (object,), None)
    assert json.loads(JsonFormatter().format(record))["message"] == "<class 'object'>"
    record.msg, record.args = Event("failed", {"reason": TimeoutError(), "empty": ""}), None
    line = json.loads(JsonFormatter().format(record))
    assert (line["reason"], line["empty"]) == ("TimeoutError", "")


def test_warnings_of_libraries_are_not_shown() -> None:
    code = (
        "import warnings; from fleet.config.logs import configure_logging\n"
        "configure_logging('INFO', 'text'); warnings.warn('for developers')"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stderr == b""
    assert (
        b"for developers" in subprocess.run([sys.executable, "-Wd", "-c", code], capture_output=True, check=True).stderr
    )


def test_a_failure_that_goes_on_is_logged_once_and_again_when_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    failures = FailureLog(logging.getLogger("jobs"), "job")
    for reason in ("disk full", OSError("disk full"), "disk full", "no disk"):
        failures.failed(reason=reason)
    failures.succeeded()
    failures.failed(reason="no disk")
    assert [record.getMessage() for record in caplog.records] == [
        'event=job reason="disk full"', 'event=job reason="no disk"', 'event=job reason="no disk"',
    ]  # fmt: skip


def test_a_failure_that_goes_on_for_hours_is_logged_again_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    failures = FailureLog(logging.getLogger("jobs"), "job", every=60)
    for _ in range(121):
        failures.failed(reason="disk full")
    assert len(caplog.records) == 3
