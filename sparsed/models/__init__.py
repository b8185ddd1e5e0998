"""Models: the catalogue of what can be loaded, and loading."""
