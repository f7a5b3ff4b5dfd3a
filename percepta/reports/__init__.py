"""Reports: run folders in, one HTML file out that needs nothing else. Reads files only, and nothing here imports training code."""

from percepta.reports.figures import Words, curve_plots, distribution_plot, heat_map, heat_maps, neighbour_panel, strip
from percepta.reports.page import Report, write_report
from percepta.reports.run import Run, read_run, read_runs

__all__ = [
    "Report",
    "Run",
    "Words",
    "curve_plots",
    "distribution_plot",
    "heat_map",
    "heat_maps",
    "neighbour_panel",
    "read_run",
    "read_runs",
    "strip",
    "write_report",
]
