"""Log events: a name and fields, written as `key=value` text for people or as one JSON object a line for programs.

log_event(log, logging.INFO, "worker.ready", worker=1, pid=4711)

    2026-03-01 12:00:00,000 INFO fleet event=worker.ready worker=1 pid=4711
    {"time":"2026-03-01T12:00:00.000Z","level":"info","logger":"fleet","event":"worker.ready","worker":1,"pid":4711}

A value with a space, a quote or a control character is quoted in the text form, so a line has one reading. Never log a
key, a token, a password or a body.
"""

import json
import logging
import re
import sys
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from fleet.config.timestamps import rfc3339

LOG_FORMATS = ("text", "json")

_BARE = re.compile(r"[^\s\"'=\\\x00-\x1f\x7f-\x9f]+")  # needs no quotes


class Event:
    """A log message that is still a value: formatted when a handler writes it."""

    __slots__ = ("fields", "name")

    def __init__(self, name: str, fields: dict[str, Any]) -> None:
        self.name, self.fields = name, fields

    def __str__(self) -> str:
        return " ".join([f"event={self.name}", *(f"{key}={quoted(value)}" for key, value in self.fields.items())])


def quoted(value: object) -> str:
    """`value` as it appears behind `key=`: bare, or in double quotes with JSON's escapes; "-" for None and ""."""
    if value is None or value == "":
        return "-"
    text = f"{value:g}" if isinstance(value, float) else _text(value)
    if _BARE.fullmatch(text) and text.isprintable():
        return text
    shown = json.dumps(text, ensure_ascii=False)
    return shown if shown.isprintable() else json.dumps(text)


def _text(value: object) -> str:
    """An error without a text of its own, such as most timeouts, goes by its name."""
    return str(value) or type(value).__name__


def log_event(logger: logging.Logger, level: int, event: str, /, *, exc_info: Any = None, **fields: Any) -> None:
    """Log `event` with its fields, in the order given."""
    if logger.isEnabledFor(level):
        logger.log(level, Event(event, fields), exc_info=exc_info)


class FailureLog:
    """Logs `event` for a failure that goes on: once, again when it changes, and again each `every` times (0: never)."""

    def __init__(self, logger: logging.Logger, event: str, every: int = 0) -> None:
        self._logger, self._event, self._every = logger, event, every
        self._last: dict[str, str] | None = None
        self._times = 0

    def failed(self, **fields: Any) -> None:
        shown = {name: _text(value) for name, value in fields.items()}
        self._times = self._times + 1 if shown == self._last else 0
        self._last = shown
        if self._times == 0 or (self._every and self._times % self._every == 0):
            log_event(self._logger, logging.ERROR, self._event, **fields)

    def succeeded(self) -> None:
        """The next failure is a new one."""
        self._last = None


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: time (UTC), level, logger, then the event's fields, or `message`."""

    def __init__(self, **context: Any) -> None:
        super().__init__()
        self._context = context

    def format(self, record: logging.LogRecord) -> str:
        time = rfc3339(datetime.fromtimestamp(record.created, UTC), "milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname.lower(), "logger": record.name, **self._context}
        if isinstance(record.msg, Event):
            line |= {"event": record.msg.name, **record.msg.fields}
        else:
            line["message"] = record.getMessage()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=_text, separators=(",", ":"))


def configure_logging(level: int | str, log_format: str, **context: Any) -> None:
    """Send this process's log to stderr, in one of LOG_FORMATS; `context` is part of every line.

    Warnings that Python libraries address to developers are not shown, unless `python -W` asks for them.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    root = logging.getLogger()
    root.addHandler(StandardError(context))
    root.setLevel(level)
    use_log_format(log_format)


class StandardError(logging.StreamHandler[TextIO]):
    """The log of this process; `context` is part of every line."""

    def __init__(self, context: Mapping[str, Any]) -> None:
        super().__init__()
        self.context = context


def use_log_format(log_format: str) -> None:
    """From now on the log of `configure_logging` has this one of LOG_FORMATS."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, StandardError):
            handler.setFormatter(_formatter(log_format, handler.context))


def _formatter(log_format: str, context: Mapping[str, Any]) -> logging.Formatter:
    if log_format == "json":
        return JsonFormatter(**context)
    before = "".join(f"{key}={quoted(value)} ".replace("%", "%%") for key, value in context.items())
    return logging.Formatter(f"%(asctime)s %(levelname)s %(name)s {before}%(message)s")
