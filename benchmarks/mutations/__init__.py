"""Damaged models must give an error that a person can read, never a crash: see `__main__`."""
