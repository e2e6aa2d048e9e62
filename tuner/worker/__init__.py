"""The processes that build and time candidates, apart from the tuner, so that they may die."""
