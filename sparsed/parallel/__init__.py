"""Several processes: one model held by all of them, or work dealt out among them."""
