"""The parts of a report: each reads results, metrics or files, and returns a section."""
