"""The same as ``flatten-det flops``."""

import sys

from flatten_det.commands.flops import main

if __name__ == "__main__":
    sys.exit(main())
