"""The fleet's CAs as the API uses them: what it shows of them, and who signs for stations and operators."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from fleet.domain.device import Model
from fleet.domain.ports import Issuer
from fleet.services.forecast import OwnCertificate

if TYPE_CHECKING:
    from cryptography import x509

    from fleet.ca.view import CaCertificate


@dataclass(frozen=True, slots=True)
class CaAccess:
    """What a home has, read anew at each call: it may have been replaced."""

    operators: "Callable[[], x509.Certificate]"
    """The operators' CA: an operator's chain ends here, and nobody else's does."""
    issuer: Callable[[], Issuer]
    """Signs for stations and claims."""
    operators_issuer: Callable[[datetime], Issuer]
    """Its key is read when it is needed, and not held. Raises: Unavailable: it is kept elsewhere."""
    shown: "Callable[[], Sequence[CaCertificate]]"
    """The root that devices trust comes first."""
    forecasted: Callable[[], Sequence[OwnCertificate]]
    demand_names: Callable[[Model, datetime], None] = lambda model, now: None
    """Raises: Refused (`name-impossible`): name constraints above the CA that signs for the model forbid its names."""
