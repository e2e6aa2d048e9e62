"""Scripts that measure tilewright: `python -m benchmarks.NAME` from the repository root."""
