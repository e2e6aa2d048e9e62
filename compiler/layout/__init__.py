"""Tensor layouts: primitives, rewriting, propagation, assignment."""
