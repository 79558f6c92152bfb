"""Report pages: one HTML file with the verdict, curves, faces and the margin lab."""

from margrave.report.building import build_report, lab_page
from margrave.report.contents import Page, Section
from margrave.report.inputs import ReportInput, open_input
from margrave.report.lab import lab_tables
from margrave.report.page import write_page

__all__ = [
    "Page",
    "ReportInput",
    "Section",
    "build_report",
    "lab_page",
    "lab_tables",
    "open_input",
    "write_page",
]
