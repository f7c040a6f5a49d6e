"""Hardware serials as X.520 compares the serialNumber of a name."""


def comparable(serial: str) -> str:
    """`serial` without what caseIgnoreMatch ignores (RFC 4518, 2.6.1): letter case, spaces at its ends, and how many
    spaces there are between words. What was written stays as it is wherever it is shown or certified.
    """
    return " ".join(serial.lower().split())
