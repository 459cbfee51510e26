"""The same as ``flatten-det benchmark``."""

import sys

from flatten_det.commands.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
