"""What grants have in common."""

from typing import ClassVar

from msgspec import Struct

from fleet.domain.issuance_context import IssuanceContext


class Declared(Struct, frozen=True):
    """What each kind of grant says about itself."""

    word: ClassVar[str]
    """The first of its text."""
    covers_the_field: ClassVar[bool] = False
    """Whether its certificate, when it is first used, may supersede others of the device that are in use, and is kept
    when an older one is first used.
    """


class FirstGrant(Declared, frozen=True):
    """Of a first certificate."""

    replaces = None

    def would_take_over(self, a: IssuanceContext) -> bool:
        """The device is in the field, or its name is held with another key than the one requested."""
        return a.is_in_the_field() or any(c.key_sha256 != a.request.key_sha256 for c in a.credentials)
