"""The command eval: how many answers are right."""
