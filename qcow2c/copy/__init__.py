"""What is copied: plan, buffers, transfer, targets, streams, overlays.

May import: disk, builder, atomic.
Never: knows a command, or decides which file a name leads to.
Durable order: that of its targets: a new file looks complete only when it is.
numpy at import: nowhere.
"""
