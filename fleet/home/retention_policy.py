"""How long a home keeps records, as its settings say."""

from fleet.config.settings import Settings
from fleet.services.retention import Policy


def retention_policy(settings: Settings) -> Policy:
    """How long records are kept."""
    return Policy(settings.events_days, settings.audit_days, settings.expired_credentials_days)
