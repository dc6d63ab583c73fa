"""Bytes: local files, file objects and memory as stores; locks; the gate; how a file comes into being.

May import: errors.
Never: knows a format of images.
Durable order: a new file is written beside its place and renamed when it is complete, or is empty until then.
numpy at import: nowhere.
"""
