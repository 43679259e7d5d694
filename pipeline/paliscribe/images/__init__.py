"""Pictures: fetched, decoded, and bounded where their addresses come from callers."""
