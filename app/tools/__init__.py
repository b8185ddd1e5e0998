"""What a developer runs now and then: `python -m app.tools.NAME`. Nothing here is used by the page."""
