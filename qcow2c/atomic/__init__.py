"""The image changed as a whole by one write of its header: snapshots, size, version, emptying.

May import: writer.
Never: touches what the present header names.
Durable order: new structures in free space; the header; then what it no longer names is freed.
numpy at import: empty, free_space, refcounts, size, snapshots, successor, version.
"""
