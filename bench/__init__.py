"""Benchmarks: `python -m bench.NAME [--json]`. Results are recorded in docs/benchmarks.md."""
