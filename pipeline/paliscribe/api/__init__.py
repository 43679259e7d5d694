"""The Python API: annotate, ask and load, exported by `paliscribe`."""
