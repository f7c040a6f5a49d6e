"""An error code with its documentation."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """One stable code. `statuses`: HTTP statuses it is sent with, by operation."""

    code: str
    statuses: tuple[int, ...]
    meaning: str
    advice: str = ""


def codes(*rows: tuple[str, int | tuple[int, ...], str, str]) -> tuple[ErrorCode, ...]:
    """Rows of code, status or statuses, meaning, advice."""
    return tuple(
        ErrorCode(code, (status,) if isinstance(status, int) else status, meaning, advice)
        for code, status, meaning, advice in rows
    )
