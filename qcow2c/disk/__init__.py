"""A disk as commands see it: opening, maps, block status, differences, size.

May import: image.
Never: copies guest data.
numpy at import: differences, map_arrays.
"""
