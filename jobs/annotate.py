"""Annotate a manifest: `ray job submit -- python -m jobs.annotate JOB.yaml` (the flags of `paliscribe annotate`)."""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "annotate")
    main()
