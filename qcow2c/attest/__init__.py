"""The second parser, and the two held against each other; `_kaitai/` is compiled from `formats/qcow2.ksy`.

May import: format.
Never: lets another package import `_kaitai/`: it is a witness.
numpy at import: nowhere.
"""
