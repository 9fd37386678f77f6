"""The report: one page of HTML that needs nothing else, of one run or of several side by side."""

from distblock.report.page.making import make_page
from distblock.report.page.run import Run

__all__ = ["Run", "make_page"]
