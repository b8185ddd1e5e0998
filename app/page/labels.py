"""What the header and the dropdowns say."""

from __future__ import annotations

import hashlib
from typing import Any

from app import lanes, texts
from app.engine import cost
from app.engine.fewer_bits import OFFERED, in_bits, without_bits
from app.finished.run import Kept
from app.page.inputs import Server
from app.page.values import as_json
from app.race.request import Request
from app.race.snapshot import before_run
from app.server import limits
from app.server.measured import Measured
from app.server.models import GB, Loaded
from sparsed.attention.masks import Masks
from sparsed.models.catalogue import ModelSpec

Choices = list[tuple[str, str]]
# Of the presets of lanes: the visitor has chosen others in the settings.
OTHER_LANES = "others"


def length_label(server: Server, name: str, remark: str = "") -> str:
    shown = name.replace("_", " ")
    return f"{shown} · {remark}" if remark else f"{shown} · {server.lengths[name]:,} tokens"


def length_choices(
    server: Server, asked: Request | None = None, loaded: Loaded | None = None, measured: Measured | None = None
) -> Choices:
    """Every prompt length, with its tokens; for a model in memory with the time that the race of `asked` takes here, or
    the reason why it is too long for this machine. measured: what the visit's runs took.
    """
    if asked is None or loaded is None:
        return [(length_label(server, name), name) for name in server.lengths]
    room = server.desk.speed.room(loaded)
    choices = []
    for name, tokens in server.lengths.items():
        resolved = asked.resolve(tokens)
        estimated = server.desk.speed.estimate(loaded, resolved, tokens)
        reason = limits.reason(estimated, room, length=tokens + asked.gen_length)
        if measured is not None:
            estimated = measured.applied(estimated, loaded, resolved, tokens)
        remark = race_time(estimated, asked) if estimated else ""
        choices.append((length_label(server, name, f"too long here: {reason}" if reason else remark), name))
    return choices


def race_time(estimated: cost.Estimate, asked: Request) -> str:
    """How long the race takes, in words; with a threshold it may be over earlier."""
    return cost.about(estimated.seconds) + (" at most" if asked.at_most else "")


def lanes_named(asked: Request) -> str:
    """What stands beside full attention and SparseD, or nothing."""
    further = [lane.label for lane in asked.lanes if lane.full is False and lane is not asked.headline]
    return f"{len(asked.lanes)} lanes: also {'; '.join(further)}" if further else ""


def preset_choices() -> Choices:
    """The presets of lanes, with how many lanes each has."""
    named = [(f"{len(further) + len(lanes.PAIR)} lanes · {label}", label) for label, further in lanes.PRESETS.items()]
    return [*named, ("as chosen in Settings", OTHER_LANES)]


def fingerprint(asked: Request) -> str:
    """A short name of a request, the same for equal ones: the page compares what its controls ask for with what its
    lanes show.
    """
    return hashlib.sha256(repr(asked).encode()).hexdigest()[:16]


def model_label(server: Server, name: str, remark: str = "") -> str:
    spec = server.models[name]
    return " · ".join(filter(None, (spec.label, remark or _download(spec))))


def _download(spec: ModelSpec) -> str:
    return "" if spec.bundled else f"{spec.download_gb:.1f} GB download" if spec.parameters else "from the Hub"


def model_choices(server: Server, asked: Request | None = None) -> Choices:
    """Every model, with what it takes to have it here and to make the race of `asked`, or the reason why it is too
    large for this machine; in fewer bits those that are asked for, in memory, or what fits of a model that does not.
    """
    choices = []
    for name, spec in server.models.items():
        there = server.desk.models.loaded(name) is not None
        if spec.quantize is not None and not there and (asked is None or name != asked.model):
            if fitting(server, without_bits(name), asked) != name:
                continue
        remark = "in memory" if there and not spec.bundled else _room_for(server, name, asked)
        choices.append((model_label(server, name, remark), name))
    return choices


def fitting(server: Server, name: str, asked: Request | None) -> str:
    """The row of a model that fits here: as it is, else in the most bits; its own name where none does, or where that
    is not known.
    """
    rows = [name, *(in_bits(name, kind) for kind in OFFERED)]
    return next((row for row in rows if row in server.models and not _lacking(server, row, asked)[0]), name)


def _lacking(server: Server, name: str, asked: Request | None) -> tuple[str, str]:
    """Why there is no room for a model and the race of `asked`, or "", and what they need."""
    spec, room = server.models[name], server.desk.models.room()
    if spec.bundled or not spec.parameters:
        return "", ""
    if reason := server.desk.models.too_large(name):
        return f"too large here: {reason}", ""
    if asked is None:
        return "", ""
    tokens = server.lengths[asked.length]
    needed = server.desk.speed.needed(name, asked.resolve(tokens), tokens)
    if needed == server.desk.engine.weights(name):  # more is not known
        return "", ""
    bits = f" in {round(8 * server.desk.engine.weights(name) / spec.parameters)} bits" if not spec.quantize else ""
    needs = f"needs {needed / GB:.1f} GB{bits}" + ("" if room is None else f", {room / GB:.1f} GB here")
    return (f"too large at {asked.length}: {needs}" if room is not None and needed > room else ""), needs


def _room_for(server: Server, name: str, asked: Request | None) -> str:
    lacking, needs = _lacking(server, name, asked)
    return lacking or " · ".join(filter(None, (_download(server.models[name]), needs)))


def lane_choices(run: Kept | Masks | None) -> Choices:
    """The lanes to choose between; SparseD's alone while a run goes on, and where there is nothing to choose."""
    there = run.lanes if isinstance(run, Kept) and run.sparse is not None else {}
    large = lanes.headline(there) or lanes.PAIR[1]
    others = (lane for lane, made in there.items() if lane != large and not lane.full and made.pattern is not None)
    return [(lane.label, lane.key) for lane in (large, *others)]


def loading_header(server: Server, name: str, message: str) -> str:
    return _header(f"loading {server.models[name].name}", message, busy=True)


def model_header(server: Server, name: str) -> str:
    loaded = server.desk.models.loaded(name)
    if loaded is None:
        return _header(server.models[name].name, "not in memory")
    return _header(loaded.model.name, loaded.place, server.desk.engine.backend(loaded.model))


def _header(*chips: str, busy: bool = False) -> str:
    return as_json({"title": texts.TITLE, "tagline": texts.TAGLINE, "chips": chips, "busy": busy})


def stage_before(server: Server, state: str = "idle", message: str = texts.START) -> dict[str, Any]:
    """The stage before a run, as it would be with the settings that nobody has touched."""
    defaults = server.desk.models.defaults(server.desk.models.default)
    usual = defaults.resolve(defaults)
    return before_run(
        lanes.PAIR,
        usual.gen_length,
        usual.block_length,
        total=usual.steps,
        at_most=usual.at_most,
        grows=usual.grows,
        state=state,
        message=message,
    )
