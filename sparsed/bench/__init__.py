"""The command bench: full attention against SparseD, timed on this machine."""
