"""Doors: what is inside an image, served to programs that know nothing of its format.

Owns the protocols, the connections and their limits, what an export is, and the folder of an image. It never knows the
format: an export reads and writes a disk through `Image`. A client is not trusted: what it asks for is bounded, and no
request ends the server.

Durable order: that of the image; a flush that a client asks for, or a write with FUA, is answered when it is durable,
and what was written is durable when the server has ended.

May import: ops.

numpy at import: nowhere.
"""
