"""What keeps a run from being made: one sentence near Run, in the page's own words, and the way back."""

from __future__ import annotations

import re
from typing import Any

from app.page.inputs import Server
from app.page.values import as_json
from app.race.fields import FIELDS

# The engine calls settings and their values as programs do; here is what the page calls them.
_LABELS = {field.name: f"“{field.label}”" for field in FIELDS}
_SETTINGS = [field for field in FIELDS if field.home != "race"]
_VALUES = {
    name: f"“{label}”"
    for field in reversed(_SETTINGS)
    for name, label in (field.choices or {}).items()
    if isinstance(name, str)
}
# A name with an underscore is no word of a sentence; another one is a setting where something is said of it.
_UNDERSCORED = "|".join(sorted((name for name in _LABELS if "_" in name), key=len, reverse=True))
_SAID_OF = "|".join(field.name for field in _SETTINGS if "_" not in field.name)
_NAMED = re.compile(rf"\b(?:({_UNDERSCORED})\b|({_SAID_OF})(?= (?:must|is|has|belongs)\b))")
_QUOTED = re.compile("'(" + "|".join(map(re.escape, _VALUES)) + ")'")
# "(OSError: no such host)": the class is for the log.
_CLASS = re.compile(r" \((?:\w+\.)*\w*(?:Error|Exception)(?:(: )([^()]*))?\)")


def in_page_words(sentence: str) -> str:
    """A sentence of the engine with the page's labels in place of names of the code, and without classes of errors."""
    said = _CLASS.sub(lambda found: f": {found[2]}" if found[1] else "", sentence)
    said = _NAMED.sub(lambda found: _LABELS[found[1] or found[2]], said)
    return _QUOTED.sub(lambda found: _VALUES[found[1]], said)


def trouble(server: Server, sentence: str = "", model: Any = None) -> str:
    """The value of the place near Run; without a sentence it is empty. model: the one that was chosen, which may be
    anything: where it is not here the way back is the model that is.
    """
    default = server.desk.models.default
    away = sentence and isinstance(model, str) and model != default and server.desk.models.loaded(model) is None
    back = f"Back to {server.models[default].name}" if away else ""
    return as_json({"sentence": in_page_words(sentence), "back": back})
