"""Figures of the page, and the colours they are drawn in."""
