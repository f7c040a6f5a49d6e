"""Command lines of the agent's own Python processes."""

import sys


def module_command(module: str) -> list[str]:
    """The command that runs `module` in a new interpreter like this one.

    -P: no module in the working directory may shadow one of ours. -W: warnings of libraries are hidden, unless this
    interpreter shows them.
    """
    warnings = [f"-W{option}" for option in sys.warnoptions or ["ignore"]]
    return [sys.executable, "-P", *warnings, "-m", module]
