"""The same as ``flatten-det check``."""

import sys

from flatten_det.commands.check import main

if __name__ == "__main__":
    sys.exit(main())
