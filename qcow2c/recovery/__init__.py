"""What a repair does: survey, doubt, plan, changes, and the journal that takes it back;
and what a damaged file still holds.

May import: references.
Never: imports the engine or above: it works on images that the engine refuses.
Durable order of a repair: the journal; then stages, each durable before the next, as `changes.py` states them.
numpy at import: changes, doubt, found_bitmaps, found_image, found_ranges, found_refcounts, found_states, found_tables,
plan, rival_tables, shape, survey, table_scan.
"""
