"""The report: a run on one self-contained HTML page.

`sections` says which sections there are and makes the page; `drawn`, `measured`, `training` and `provenance` make them,
each from the `subject`, which is the run with what of it loads; `page` is what a page is made of, `plots` its charts.
A section asks what is there (levels, an encoder, layers, labels), never what kind of run it is: one is added by a
function here and its name in `sections.SECTIONS`, and nothing outside knows of it.
"""

from hebmtool.report.sections import report

__all__ = ["report"]
