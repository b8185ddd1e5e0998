"""How the bundled model was made: tokenizer, training rows, curriculum, trainer (``python -m sparsed.training``)."""
