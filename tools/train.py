"""The same as ``flatten-det train``."""

import sys

from flatten_det.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
