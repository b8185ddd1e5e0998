"""Comparison of prompt lengths."""
