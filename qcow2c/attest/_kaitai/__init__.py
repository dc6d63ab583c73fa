"""The parser that Kaitai Struct compiles from formats/qcow2.ksy: the second witness, for `verify.py` alone.

Generated; `make ksy` writes it anew and `make ksy-check` proves that it is what the description says. `qcow2` has
every check that the description asks for, `qcow2_unchecked` reads the same fields whatever their values.
"""
