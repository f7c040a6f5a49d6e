"""How a dialogue ends badly, as one tree.

    DialogueError
     ├─ NoAnswer        the board stays silent, or restarts over and over
     ├─ BoardRefused    the board said no, in its own words
     ├─ BadBoard        the board breaks the protocol, or is not what it claims to be
     └─ WrongIdentity   what we were about to send does not fit this board

Each carries the code that PROTOCOL.md gives it.
"""

from fleet.wire.serial.messages import FailureCode


class DialogueError(Exception):
    """The root: this board was not provisioned."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def code_name(self) -> str:
        """The code in words: "bad-proof"; "code-99" for one that we do not know."""
        try:
            return FailureCode(self.code).name.lower().replace("_", "-")
        except ValueError:
            return f"code-{self.code}"


class NoAnswer(DialogueError):
    """The board stays silent, or restarts over and over."""


class BoardRefused(DialogueError):
    """The board said no, in its own words."""


class BadBoard(DialogueError):
    """The board breaks the protocol, or is not what it claims to be."""


class WrongIdentity(DialogueError):
    """What we were about to send does not fit this board."""
