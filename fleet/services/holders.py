"""Requirements on the certificate requests of stations and operators. The registry refuses a key that another holder
has.
"""

from fleet.domain.device import KEY_TYPES
from fleet.domain.errors import Invalid
from fleet.domain.issuance_context import COMMON_NAME


def demand_good_key(key_type: str) -> None:
    """Return when the key's type is allowed. Raises: Invalid (`key-not-allowed`)."""
    if key_type not in KEY_TYPES:
        raise Invalid("key-not-allowed", f"{key_type} keys are not accepted.", f"Use one of: {', '.join(KEY_TYPES)}.")


def demand_own_name(name: str, subject: tuple[tuple[str, str], ...]) -> None:
    """Return when the request's subject is the holder's name and nothing more: its signature then covers that name.

    Raises: Invalid (`name-not-in-request`).
    """
    if subject != ((COMMON_NAME, name),):
        message = f"The subject of the certificate request is not CN={name[:80]}."
        raise Invalid("name-not-in-request", message, "Make a request for that name, with no other part.")
