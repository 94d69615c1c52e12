"""Binary units, in which GPU memory is counted."""

MIB = 2**20
GIB = 2**30
