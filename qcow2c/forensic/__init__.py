"""The nodes and renderings of a dump, traces of offsets, of which `dump.py` is made; verdicts on untrusted files.

May import: references, layers, attest, recovery, crypto.
Never: imports the engine or above: it shows images that the engine refuses; writes.
numpy at import: compressed_streams, free_space, table_load, table_nodes, trace.
"""
