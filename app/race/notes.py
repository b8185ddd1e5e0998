"""What the lanes of a race have to say, as one list of sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def of_lanes(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Every note of every lane once, in the order in which they come. notes: a lane's label → its own.

    What all lanes say stands alone; what only some of them say begins with who does: "SparseD: …".
    """
    found: dict[str, list[str]] = {}
    for label, said in notes.items():
        for note in dict.fromkeys(said):
            found.setdefault(note, []).append(label)
    return [
        note if len(labels) == len(notes) else f"{' and '.join(labels)}: {note}" for note, labels in found.items()
    ]
