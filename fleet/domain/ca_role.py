"""What a CA of the fleet is for."""

import enum


class CaRole(enum.StrEnum):
    ROOT = "root"
    FORMER_ROOT = "former root"
    """Before a rollover: it signs nothing but what links it to its successor."""
    ISSUING = "issuing"
    FORMER = "former"
    """An issuing CA before a rollover: it signs no more certificates."""
    INTERMEDIATE = "intermediate"
    """Between an issuing CA, present or former, and a corporate root; its key is elsewhere."""
    OPERATORS = "operators"


ISSUES_TO_DEVICES = frozenset({CaRole.ISSUING, CaRole.FORMER})
"""Those whose certificates devices, stations and claims hold."""
ROOTS = frozenset({CaRole.ROOT, CaRole.FORMER_ROOT})
"""Each is self-signed."""
