"""What computes sparse attention: one function signature, several backends."""
