"""Accuracy against speed: the evaluation that comes with the app, what it says, and a visitor's run beside it."""
