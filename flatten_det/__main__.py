"""``python -m flatten_det COMMAND ...``: the same as ``flatten-det COMMAND ...``."""

import sys

from .commands import main

if __name__ == "__main__":
    sys.exit(main())
