"""Models in fewer bits as rows of the page's list: what they need, which are offered, what their names mean."""

from __future__ import annotations

from typing import Any

import pytest

from app.engine.cost import peak
from app.engine.fewer_bits import OFFERED, bits_of, in_bits, without_bits
from app.engine.interface import check_name
from app.engine.local import SparsedEngine
from app.page.inputs import Server
from app.page.labels import fitting, model_choices
from app.race import request
from app.race.fields import usual
from app.race.links import from_link, link
from app.server.desk import Desk
from app.server.limits import Limits
from sparsed.models.catalogue import CATALOGUE
from sparsed.models.numbers import QUANTISED

GB = 10**9
EIGHT = "llada-8b-instruct"


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torchao were there."""
    monkeypatch.setattr("sparsed.models.numbers.find_spec", lambda _: object())


def server_of(monkeypatch: pytest.MonkeyPatch, gigabytes: float | None) -> Server:
    engine = SparsedEngine()
    memory = None if gigabytes is None else int(gigabytes * GB)
    monkeypatch.setattr(engine, "memory", lambda model=None: memory)
    return Server(Desk(engine, "mini", Limits()), "about", "4k")


def asked_of(server: Server, length: str, model: str = "mini") -> Any:
    values = {**usual(model, "about", length), "kind": "about", "length": length}
    return request.parse(
        **values, defaults=server.desk.models.defaults(model), models=server.models, kinds=server.kinds,
        lengths=server.lengths,
    )  # fmt: skip


def test_names_and_back() -> None:
    for spec in CATALOGUE:
        assert (bits_of(spec.name), without_bits(spec.name)) == (None, spec.name)
        for kind in QUANTISED:
            row = in_bits(spec.name, kind)
            assert (bits_of(row), without_bits(row)) == (kind, spec.name)
            check_name(row)
    for name in ("int4", "owner/name", "me@home/model", "x@int3"):
        assert (bits_of(name), without_bits(name)) == (None, name)
    check_name("owner/name@int8")
    with pytest.raises(ValueError, match="'x@int3' is none of mini"):
        check_name("x@int3")


def test_every_model_that_can_be_quantised_has_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = SparsedEngine().models()
    for spec in CATALOGUE:
        found = [row for row in rows if without_bits(row) == spec.name]
        kinds = [] if spec.family == "llada_moe" else list(QUANTISED)
        assert found == [spec.name, *(in_bits(spec.name, kind) for kind in kinds)]
        for row in found[1:]:
            told = rows[row]
            assert (told.name, told.quantize, told.parameters) == (row, bits_of(row), spec.parameters)
            assert told.label == f"{spec.label} in {bits_of(row)}" and told.download_gb == spec.download_gb
    monkeypatch.setattr("sparsed.models.numbers.find_spec", lambda _: None)
    assert list(SparsedEngine().models()) == [spec.name for spec in CATALOGUE]


def test_a_refused_name_is_answered_with_whole_models() -> None:
    with pytest.raises(ValueError, match="is not one of mini, qwen3-0.6b-diffusion, llada-8b-instruct, ") as caught:
        SparsedEngine().admit("llada-8b-instruct@int3")
    assert "@" not in str(caught.value).removeprefix("The model 'llada-8b-instruct@int3'")


def test_what_a_row_needs_are_its_weights_and_the_race(monkeypatch: pytest.MonkeyPatch) -> None:
    server = server_of(monkeypatch, 100)
    for length in ("4k", "16k"):
        asked, tokens = asked_of(server, length), server.lengths[length]
        for kind, weights in {None: 16.03, "int8": 9.06, "int4": 5.73}.items():
            row = EIGHT if kind is None else in_bits(EIGHT, kind)
            shape = server.desk.engine.known_shape(row)
            beside, _ = peak(shape, asked.resolve(tokens).lanes, tokens + asked.gen_length, 32)
            needed = server.desk.speed.needed(row, asked.resolve(tokens), tokens)
            assert shape.weight_bytes / GB == pytest.approx(weights, abs=0.01)
            assert needed == shape.weight_bytes + int(beside / 0.9)
            if length == "4k" and kind is not None:
                assert needed < 12 * GB


def needs(server: Server, row: str, asked: Any) -> str:
    tokens = server.lengths[asked.length]
    return f"needs {server.desk.speed.needed(row, asked.resolve(tokens), tokens) / GB:.1f} GB"


def test_the_list_says_what_is_needed_and_offers_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large machine: as it is, whatever else there is. 20 GB: int8 at 64k, nothing at 128k. 12 GB: int8 at 4k,
    nothing at 64k; 10 GB: int4.
    """
    download = "16.0 GB download · "
    wanted = {
        (100, "4k"): (EIGHT, f" · {download}{{}} in 16 bits, 100.0 GB here"),
        (20, "64k"): (f"{EIGHT}@int8", f" in int8 · {download}{{}}, 20.0 GB here"),
        (20, "128k"): (EIGHT, " · too large at 128k: {} in 16 bits, 20.0 GB here"),
        (12, "4k"): (f"{EIGHT}@int8", f" in int8 · {download}{{}}, 12.0 GB here"),
        (10, "4k"): (f"{EIGHT}@int4", f" in int4 · {download}{{}}, 10.0 GB here"),
        (12, "64k"): (EIGHT, " · too large here: 16.0 GB of weights, 12.0 GB of memory"),
        (None, "4k"): (EIGHT, f" · {download}{{}} in 16 bits"),
    }
    for (memory, length), (row, label) in wanted.items():
        server = server_of(monkeypatch, memory)
        asked = asked_of(server, length)
        choices = {name: said for said, name in model_choices(server, asked)}
        assert fitting(server, EIGHT, asked) == row
        assert {name for name in choices if without_bits(name) == EIGHT} == {EIGHT, row}
        assert choices[row] == "LLaDA-8B-Instruct" + label.format(needs(server, row, asked)), (memory, length)
        assert list(choices)[0] == "mini" and set(OFFERED) < set(QUANTISED)


def test_what_is_asked_for_is_in_the_list_whatever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    server, row = server_of(monkeypatch, 100), f"{EIGHT}@fp8"
    asked = asked_of(server, "4k", row)
    choices = {name: said for said, name in model_choices(server, asked)}
    needed = needs(server, row, asked)
    assert choices[row] == f"LLaDA-8B-Instruct in fp8 · 16.0 GB download · {needed}, 100.0 GB here"
    # A link brings it back.
    query = link({**usual("mini", "about", "4k"), "model": row}, ())
    assert f"model={EIGHT}%40fp8" in query
    assert from_link({"model": row}) == ({"model": row}, [])


def test_a_team_and_a_borrowed_gpu_have_none() -> None:
    from types import SimpleNamespace

    from app.engine.borrowed import ZeroEngine

    team: Any = SimpleNamespace(size=2)
    assert list(SparsedEngine(team=team).models()) == [spec.name for spec in CATALOGUE]
    zero = ZeroEngine(["mini@int8"], lambda **_: lambda race: race)
    with pytest.raises(ValueError, match=r"A ZeroGPU Space has no quantised weights: list mini in SPARSED_MODELS\."):
        zero.load("mini@int8", print)
