"""Which key blocks each query block keeps."""
