"""A run that is over as the earlier turns of a conversation, and what the page shows of it."""

from __future__ import annotations

import json
from typing import Any

from app.finished.run import Kept
from app.race.checks import Turns, as_messages

# Of a turn so many characters are shown: of a longer one its last line, where a question about documents stands.
_SHOWN = 360


def answers_of(run: Kept) -> dict[str, tuple[str, str]]:
    """The finished answers by the lane's key: (label, text), full attention first."""
    return {lane.key: (lane.label, made.text[0]) for lane, made in run.lanes.items() if made.finished and made.text}


def turns_after(run: Kept, lane: str) -> Turns | None:
    """The conversation up to a lane's answer; None where the run does not hold it."""
    text, answer = run.trace.prompt.text, answers_of(run).get(lane)
    if text is None or answer is None:
        return None
    return (*run.trace.prompt.history, ("user", text), ("assistant", answer[1]))


def as_text(turns: Turns) -> str:
    """Turns as a page and a link hold them."""
    return json.dumps(as_messages(turns), ensure_ascii=False) if turns else ""


def talk(run: Kept | None, hint: str, said: str = "") -> dict[str, Any]:
    """What the page draws: the turns so far, the answers to go on from, and where one writes. said: a sentence instead,
    where this model takes no further turn.
    """
    lanes = {} if run is None else answers_of(run)
    if run is None or run.trace.prompt.text is None or not lanes:
        return {"state": "off"}
    asked = (*run.trace.prompt.history, ("user", run.trace.prompt.text))
    return {
        "state": "refused" if said else "ready",
        "key": run.key,
        "said": said,
        "hint": hint,
        "turns": [{"role": role, "text": _end_of(text)} for role, text in asked],
        "lanes": [{"key": key, "label": label, "text": _end_of(text)} for key, (label, text) in lanes.items()],
    }


def _end_of(text: str) -> str:
    """A turn as it is shown."""
    text = text.strip()
    if len(text) <= _SHOWN:
        return text
    last = text.rsplit("\n", 1)[-1]
    return f"… {last}" if len(last) <= _SHOWN else f"… {last[-_SHOWN:].split(' ', 1)[-1]}"
