"""Tuning for GPUs: layouts and tiles together, measured on the device or estimated."""
