"""Attention: importance and selection of blocks, patterns, backends; and a run's policy, kernels and state."""
