"""`python -m device_agent.key_check HOME KEY`: prints why the key store can never use the key in the file KEY.

Nothing, if it can, or does not answer. A short-lived process, since it needs `cryptography`.
"""

import sys
from pathlib import Path

from device_agent.config.agent_config import read_config
from device_agent.store.device_key import load_key
from device_agent.store.hardware_key import KeyOfAnother
from fleet.est_client.errors import ClientError


def main() -> None:
    home, key_file = map(Path, sys.argv[1:])
    try:
        load_key(key_file, read_config(home).key_store)
    except KeyOfAnother as error:
        print(error.message)
    except (ClientError, OSError):
        pass


if __name__ == "__main__":
    main()
