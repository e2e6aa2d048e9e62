"""How one PrimFunc becomes loops for one target."""
