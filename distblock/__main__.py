"""``python -m distblock``."""

from distblock.cli import main

main()
