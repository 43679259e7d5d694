"""The life of a manifest row: a run, its shards, its stage processes."""
