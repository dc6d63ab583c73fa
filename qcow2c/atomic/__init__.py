"""The image changed as a whole by one write of its header: snapshots, size, version, emptying.

May import: writer.
Never: touches what the present header names.
Durable order: new structures in free space; the header; then what it no longer names is freed. in_place has another.
numpy at import: copied_bits, empty, free_space, in_place, new_refcounts, refcounts, size, snapshots, successor,
version.
"""
