"""The same as ``flatten-det test``."""

import sys

from flatten_det.commands.test import main

if __name__ == "__main__":
    sys.exit(main())
