"""What can go wrong at the station itself, beside the board (DialogueError) and the EST server (EstError).

StationError
 ├─ LinkError    the serial port is missing, in use or gone
 ├─ LedgerError  the ledger cannot be read or written, or it knows the board as somebody else
 └─ Stopped      somebody pressed Ctrl-C, or the time was up
"""


class StationError(Exception):
    """The root. `code` is stable; `advice` says what to do next, "" when the message says it all."""

    def __init__(self, code: str, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.advice = advice


class LinkError(StationError):
    """The serial port is missing, in use or gone."""


class LedgerError(StationError):
    """The ledger cannot be read or written, or it knows the board as somebody else."""


class Stopped(StationError):
    """Somebody pressed Ctrl-C, or the time was up."""
