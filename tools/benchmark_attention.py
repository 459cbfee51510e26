"""The same as ``flatten-det benchmark-attention``."""

import sys

from flatten_det.commands.benchmark_attention import main

if __name__ == "__main__":
    sys.exit(main())
