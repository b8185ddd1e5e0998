"""Caches: which rows a step computes, and the keys and values of the others."""
