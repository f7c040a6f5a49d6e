"""Error codes: the one list of every stable code, with its HTTP status, meaning and advice.

    ERROR_CODES["token-expired"].meaning

A code is part of the API: it never changes and has one meaning. `python -m fleet.domain.error_codes` prints the page
fleet/ERRORS.md; a test keeps the two equal, and proves that no other code is raised.
"""

from fleet.domain.error_codes.audit import AUDIT
from fleet.domain.error_codes.code import ErrorCode
from fleet.domain.error_codes.enrollment import ENROLLMENT
from fleet.domain.error_codes.objects import OBJECTS
from fleet.domain.error_codes.operation import OPERATION
from fleet.domain.error_codes.requests import REQUESTS

SECTIONS: dict[str, tuple[ErrorCode, ...]] = {
    "Requests": REQUESTS,
    "Enrollment and authentication": ENROLLMENT,
    "Objects of the registry": OBJECTS,
    "Audit": AUDIT,
    "Home, database, backup and CAs": OPERATION,
}

ERROR_CODES: dict[str, ErrorCode] = {each.code: each for section in SECTIONS.values() for each in section}

_HEAD = """\
# Error codes

Every error has a stable code: `code` in problem details (RFC 9457) and audit rows, `code=` in log lines. The status is
that of HTTP responses; the commands exit with 1. Where a code has several statuses, they depend on the operation.

This page is generated: `python -m fleet.domain.error_codes > fleet/ERRORS.md`.
"""


def errors_page() -> str:
    """The page fleet/ERRORS.md."""
    lines = [_HEAD]
    for title, codes in SECTIONS.items():
        lines += [f"## {title}", "", "| code | status | meaning | what to do |", "| --- | --- | --- | --- |"]
        for each in sorted(codes, key=lambda code: code.code):
            status = ", ".join(map(str, each.statuses))
            lines.append(f"| `{each.code}` | {status} | {each.meaning} | {each.advice} |")
        lines.append("")
    return "\n".join(lines)
