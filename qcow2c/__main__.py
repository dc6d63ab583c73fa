"""`python -m qcow2c`: the command line."""

import sys

if __name__ == "__main__":
    try:
        from qcow2c.cli import main

        status = main()
    except KeyboardInterrupt:  # While modules were imported: the command itself answers in its own way.
        status = 130
    sys.exit(status)
