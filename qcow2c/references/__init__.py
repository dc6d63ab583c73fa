"""The metadata as a whole: the walk over all references, counts, overlaps, ownership, check, admission.

May import: format.
Never: reads guest data; writes.
numpy at import: admission_count, batches, counts, faults, full_check, overlaps, ownership, stored_refcounts, sweep,
    walk.
"""
