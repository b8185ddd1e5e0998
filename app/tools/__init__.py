"""What a developer runs now and then, as in `python -m app.tools.opening`. Nothing here is used by the page."""
