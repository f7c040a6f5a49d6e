"""`python -m device_agent`: the same as `device-agent`."""

from device_agent.cli import main

main()
