"""Errors of the station itself, beside those of the board (DialogueError) and of the EST client (ClientError).

StationError
 ├─ LinkError    the serial port is missing, in use or lost
 ├─ LedgerError  the ledger cannot be read or written, or has another device for this board
 └─ Stopped      interrupted with Ctrl-C, or timed out
"""


class StationError(Exception):
    """The root. `code` is stable; `advice` is the next step, "" if there is none."""

    def __init__(self, code: str, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.advice = advice


class LinkError(StationError):
    """The serial port is missing, in use or lost."""


class LedgerError(StationError):
    """The ledger cannot be read or written, or has another device for this board."""


class Stopped(StationError):
    """Interrupted with Ctrl-C, or timed out."""
