"""`python -m enn_np`."""

import sys

from .lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
