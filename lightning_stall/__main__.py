"""`python -m lightning_stall`: the same as the command `lightning-stall`."""

import sys

from lightning_stall.cli import main

if __name__ == "__main__":
    sys.exit(main())
