"""What it means when a write about manifest, claims, makers' CAs or quotas finds otherwise, on every engine."""

from fleet.domain.errors import Conflict


def listed_already() -> Conflict:
    return Conflict("listed-already", "A device, a serial or a key of the manifest has been registered meanwhile.")


def no_such_model() -> Conflict:
    return Conflict("no-such-model", "There is no model of this name.", "Add it with: fleet model add.")


def claim_exists(name: str) -> Conflict:
    return Conflict("claim-exists", f"Claim {name} exists already.", "Choose another name.")


def claim_spent() -> Conflict:
    return Conflict("claim-spent", "The claim is revoked or in quarantine, or has no use left.")


def claim_not_open(name: str) -> Conflict:
    return Conflict("claim-not-open", f"Claim {name} is in quarantine already, or revoked.")


def claim_not_quarantined(name: str) -> Conflict:
    return Conflict("claim-not-quarantined", f"Claim {name} is not in quarantine, or is revoked.")


def claim_gone(name: str) -> Conflict:
    return Conflict("claim-gone", f"Claim {name} does not exist or is revoked already.")


def anchor_exists(name: str) -> Conflict:
    return Conflict(
        "anchor-exists", f"There is an anchor {name} already, or one with this certificate.", "See: fleet anchor list"
    )


def no_such_anchor(name: str) -> Conflict:
    return Conflict("no-such-anchor", f"There is no anchor {name}.", "See: fleet anchor list")


def idevid_taken() -> Conflict:
    return Conflict("idevid-taken", "The maker's certificate is another device's, or its CA is believed no more.")


def no_such_station(name: str) -> Conflict:
    return Conflict("no-such-station", f"There is no station {name}.", "See: fleet station list")


def station_spent(name: str) -> Conflict:
    return Conflict("station-spent", f"Station {name} has had its certificates of the day.")
