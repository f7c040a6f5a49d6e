"""Errors of a dialogue, as one tree.

    DialogueError
     ├─ NoAnswer           the board does not answer, or keeps restarting
     ├─ BoardRefused       the board refused a request
     ├─ BadBoard           the board violates the protocol, or is not the expected one
     └─ WrongCertificate   the certificate to be sent is not for this board

Each carries a code of PROTOCOL.md.
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
        """The code by name: "bad-proof"; "code-99" for an unknown one."""
        try:
            return FailureCode(self.code).name.lower().replace("_", "-")
        except ValueError:
            return f"code-{self.code}"


class NoAnswer(DialogueError):
    """The board does not answer, or keeps restarting."""


class BoardRefused(DialogueError):
    """The board refused a request; the message is its own."""


class BadBoard(DialogueError):
    """The board violates the protocol, or is not the expected one."""


class WrongCertificate(DialogueError):
    """The certificate to be sent is not for this board."""
