"""Attention: dense, block importance and selection, patterns, sparse backends, and the dispatch."""
