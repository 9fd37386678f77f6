"""Data sets: from files and functions to seeded microbatches that can be asked for in any order."""
