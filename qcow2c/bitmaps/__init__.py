"""Persistent bitmaps: read, changed, copied.

May import: format.
Never: counts references: the caller gives room, and frees it.
Durable order: new bits, tables and directory, where nothing refers to them; the header, which the caller writes.
numpy at import: nowhere.
"""
