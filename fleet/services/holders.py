"""Stations and operators whose keys were made elsewhere: what is asked of a request before a certificate is made for
it. That a key answers for one holder only, the registry sees to.
"""

from fleet.domain.device import KEY_TYPES
from fleet.domain.errors import Invalid

_COMMON_NAME = "2.5.4.3"


def demand_good_key(key_type: str) -> None:
    """Go on when the key is of a type that we take.

    Raises: Invalid (`key-not-allowed`).
    """
    if key_type not in KEY_TYPES:
        raise Invalid("key-not-allowed", f"{key_type} keys are not taken.", f"Use one of: {', '.join(KEY_TYPES)}.")


def demand_own_name(name: str, subject: tuple[tuple[str, str], ...]) -> None:
    """Go on when the request names whom it is for, and nothing more: its signature then stands for that very name.

    Raises: Invalid (`name-not-in-request`).
    """
    if subject != ((_COMMON_NAME, name),):
        message = f"The subject of the certificate request is not CN={name[:80]}."
        raise Invalid("name-not-in-request", message, "Make a request for that name, with no other part.")
