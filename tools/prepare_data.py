"""The same as ``flatten-det prepare``."""

import sys

from flatten_det.commands.prepare import main

if __name__ == "__main__":
    sys.exit(main())
