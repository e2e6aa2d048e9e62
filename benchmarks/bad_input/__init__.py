"""Damaged logs, modules, calibration data and command lines: see `__main__`."""
