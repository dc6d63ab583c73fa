"""`python -m qcow2c`: the command line."""

import sys

from qcow2c.cli import main

if __name__ == "__main__":
    sys.exit(main())
