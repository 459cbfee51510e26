"""The same as ``flatten-det analyze``."""

import sys

from flatten_det.commands.analyze import main

if __name__ == "__main__":
    sys.exit(main())
