"""The same as ``flatten-det ablate``."""

import sys

from flatten_det.commands.ablate import main

if __name__ == "__main__":
    sys.exit(main())
