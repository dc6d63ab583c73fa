"""What a repair does: survey, doubt, plan, changes, and the journal that takes it back.

May import: references.
Never: imports the engine or above: it works on images that the engine refuses.
Durable order: the journal; then stages, each durable before the next, as `changes.py` states them.
numpy at import: changes, doubt, plan, survey.
"""
