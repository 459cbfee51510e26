"""The same as ``flatten-det infer``."""

import sys

from flatten_det.commands.infer import main

if __name__ == "__main__":
    sys.exit(main())
