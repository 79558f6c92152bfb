"""The sections of a report: each function reads results, metrics or images, and returns one."""
