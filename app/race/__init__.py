"""A race: request, lanes taking turns, snapshots."""
