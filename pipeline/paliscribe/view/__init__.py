"""Looking at published runs: figures counted in DuckDB, plots as SVG, and the report in one file."""
