"""Everything a browser sees: the page, the race of the lanes, the token canvas, the charts and the
limits.

This package knows gradio and plotly and contains no tensor maths; the engine in `sparsed/` knows nothing of
it.
"""
