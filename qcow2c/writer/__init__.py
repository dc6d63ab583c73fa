"""The parts of the engine: cache and order, allocation, copy on write, session, dirty bitmaps, the header.

May import: references, layers, bitmaps.
Never: opens an image; knows file-like objects.
Durable order: `cache.py` states it: data, refcounts, mapping, lowered refcounts.
numpy at import: nowhere.
"""
