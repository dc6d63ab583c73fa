"""The nodes of a dump, traces of offsets, and their renderings; `dump.py` is made of them.

May import: references, attest, recovery, crypto.
Never: imports the engine or above: it shows images that the engine refuses; writes.
numpy at import: table_nodes, trace.
"""
