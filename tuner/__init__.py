"""Search layouts and loop schedules together, and log what was measured."""
