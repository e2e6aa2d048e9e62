"""Load, run and time a deployable module: ctypes and numpy, no TVM."""
