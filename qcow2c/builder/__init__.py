"""New image files in one pass; a file made of given clusters; compaction.

May import: references, crypto.
Never: changes an image that exists.
Durable order: data and metadata, then the magic value; a file that takes another's place, its name.
numpy at import: census, cluster_file, compaction.
"""
