"""What computes attention: the sparse backends, of one function signature, and the fastest dense attention."""
