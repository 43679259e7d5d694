"""What `ray job submit -- python -m jobs.NAME` runs: thin entries over `pipeline`."""
