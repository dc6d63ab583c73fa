"""One file an operation, as the library offers it.

May import: copy, dump, recovery.
Never: prints; knows the command line; imports a neighbour (`repair` alone asks `check`).
Durable order: each operation states its own.
numpy at import: nowhere.
"""
