"""What the page asks of an engine, here or on a borrowed GPU."""
