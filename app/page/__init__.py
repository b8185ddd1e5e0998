"""The page: layout, handlers, wiring."""
