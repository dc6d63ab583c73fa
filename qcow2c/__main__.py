"""`python -m qcow2c`, and what the installed script calls: the command line."""

# PYTHON_ARGCOMPLETE_OK: where argcomplete completes for all programs, it looks for this.

import sys

INTERRUPTED = 130
"""Exit status after Ctrl-C: what a shell shows for the signal."""


def main() -> int:
    """Run one command; an interrupt while modules are imported, or at the very end, is quiet, too."""
    try:
        from qcow2c.cli import main as run

        return run()
    except KeyboardInterrupt:  # The command itself answers in its own way.
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
