"""Small graph and TensorIR passes, one file each."""
