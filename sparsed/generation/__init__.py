"""The command generate, and what it shows in the terminal."""
