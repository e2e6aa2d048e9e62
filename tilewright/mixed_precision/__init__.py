"""Choose the bits of every layer, and round it to them: see `tilewright quantize --bits`."""
