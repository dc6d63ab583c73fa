"""One on-disk structure at a time: layout, geometry, codecs, header, tables, refcounts, records, their rules.

May import: constants, structs, storage.
Never: follows a reference, but for those of the header to snapshots and bitmaps; writes.
numpy at import: nowhere.
"""
