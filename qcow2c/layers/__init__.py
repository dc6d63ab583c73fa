"""A guest offset: to the host bytes of one state, and down the chain of layers below it.

May import: format, crypto.
Never: opens anything; writes.
numpy at import: nowhere.
"""
