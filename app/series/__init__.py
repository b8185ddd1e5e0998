"""More questions of the kind that was run: how often each lane is right."""
