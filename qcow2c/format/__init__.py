"""One on-disk structure at a time: layout, geometry, codecs, header, tables, refcounts, records, their rules.

May import: structs, storage.
Never: follows a reference to another structure; writes.
numpy at import: nowhere.
"""
