"""Measurements: `python -m bench.NAME [--json]`. Figures that are kept are in docs/benchmarks.md."""
