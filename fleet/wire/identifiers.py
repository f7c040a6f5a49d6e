"""What the identifiers look like that a fleet gives, as regular expressions."""

DEVICE_ID = "[A-Za-z0-9][A-Za-z0-9._:-]{0,63}"
"""No + # / $, space or NUL: usable in a topic, a file name or a client id without escaping."""
DEVICE_ID_RULE = "1 to 64 letters, digits, dots, colons, dashes or underscores, starting with a letter or digit"
NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""Of a model, a tenant, a station and the like: usable in a path, too."""
