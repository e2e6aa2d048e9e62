"""Converters by theme."""
