"""A race that is over."""
