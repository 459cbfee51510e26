"""The same as ``flatten-det convert``."""

import sys

from flatten_det.commands.convert import main

if __name__ == "__main__":
    sys.exit(main())
