"""Turn a Relax module into a deployable module."""
