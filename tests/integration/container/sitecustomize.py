"""What differs in a container, by environment: Python imports this file at every start.

CONTAINER_LACKS     modules that are not installed, separated by commas
CONTAINER_SECRETS   the folder that stands for /run/secrets
"""

import os
import sys
from pathlib import Path

LACKS = frozenset(os.environ["CONTAINER_LACKS"].split(","))


class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in LACKS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Missing())

import jobs.settings  # noqa: E402  its modules are missing by now, if they are

jobs.settings.SECRETS = Path(os.environ["CONTAINER_SECRETS"])
