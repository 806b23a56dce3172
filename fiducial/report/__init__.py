"""One self-contained HTML page per run: no network, no script library, opens from a file.

    page = Page("Evaluation", subtitle="board A").add("ROC", line_chart("ROC", [Line("model", x, y)]))
    page.write(results_dir / "report.html")

Every text that goes in is escaped; what a block function returns is finished markup (:class:`Html`).
"""

from fiducial.report.blocks import Cell, Picture, Tile, columns, copy_line, facts, gallery, note, table, tiles
from fiducial.report.charts import Cursor, Dot, Line, histogram, line_chart, scatter
from fiducial.report.images import data_uri, thumbnail
from fiducial.report.markup import Html, number, percent, rate, tag
from fiducial.report.page import Page
from fiducial.report.parallel import Scale, Thread, parallel

__all__ = [
    "Cell",
    "Cursor",
    "Dot",
    "Html",
    "Line",
    "Page",
    "Picture",
    "Scale",
    "Thread",
    "Tile",
    "columns",
    "copy_line",
    "data_uri",
    "facts",
    "gallery",
    "histogram",
    "line_chart",
    "note",
    "number",
    "parallel",
    "percent",
    "rate",
    "scatter",
    "table",
    "tag",
    "thumbnail",
    "tiles",
]
