"""The network, its stages and their local losses: torch only, no Ray, no clock, no files."""
