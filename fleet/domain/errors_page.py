"""The page fleet/ERRORS.md, of the table of error codes; and a line of that table as a value."""

from msgspec import Struct

_HEAD = """\
# Error codes

Errors of the registry, of EST and of the admin API have a stable code: `code` in problem details (RFC 9457) and audit
rows, `code=` in their log lines, and in parentheses at the end of a command's error. The status is that of HTTP
responses; commands exit with 1, or with 2 where it names a wrong use. Where a code has several statuses, they depend on
the operation. Some are raised by commands only.

No code: an error about a file of this machine (missing, there already, a password needed, what `fleet cert` reads), and
most of wrong use and of what was not confirmed. Not on this page: why the gateway closed a session or refused a
CONNECT, also a `code=` in log lines, some with a name that is here, too (the
[gateway's page](servers/gateway/README.md#close-codes)), and the codes of `fleet-station`, which precede its sentence
(`firmware_tools/README.md`).

This page is generated: `python -m fleet.domain.error_codes > fleet/ERRORS.md`.
"""


class ErrorCode(Struct, frozen=True):
    """One stable code. `statuses`: the HTTP statuses it is sent with, by operation."""

    code: str
    statuses: tuple[int, ...]
    meaning: str
    advice: str


def error_code(line: str) -> ErrorCode:
    """A line of the table: code | HTTP statuses, by operation | meaning | advice."""
    code, statuses, meaning, advice = line.split(" | ")
    return ErrorCode(code, tuple(map(int, statuses.split())), meaning, advice)


def errors_page(table: str) -> str:
    lines = [_HEAD]
    for line in table.splitlines():
        if line.startswith("#"):
            lines += [line, "", "| code | status | meaning | what to do |", "| --- | --- | --- | --- |"]
        else:
            each = error_code(line)
            lines.append(f"| `{each.code}` | {', '.join(map(str, each.statuses))} | {each.meaning} | {each.advice} |")
    return "\n".join(lines).replace("\n## ", "\n\n## ").replace("\n\n\n", "\n\n") + "\n"
