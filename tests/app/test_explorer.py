"""The figures of the pattern explorer: valid for plotly, exact, and small enough to send."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from app.figures import base, later_steps, model, shared
from app.figures import head as head_figure
from app.figures import layer as layer_figure
from app.figures.palette import palette

TWO_MEGABYTES = 2 * 10**6


def untyped(spec: dict[str, str]) -> np.ndarray:
    shape = [int(size) for size in spec["shape"].split(",")]
    return np.frombuffer(base64.b64decode(spec["bdata"]), dtype=f"<{spec['dtype']}").reshape(shape)


def drawn_mask(figure: base.Figure) -> np.ndarray:
    trace = figure["data"][0]
    return untyped(trace["z"]) >= trace["meta"]["kept_from"]


def averaged(mask: np.ndarray, per_cell: int) -> np.ndarray:
    """Thumbnails, cell by cell."""
    heads, blocks = mask.shape[:2]
    cells = -(-blocks // per_cell)
    out = np.zeros((heads, cells, cells), dtype=np.float32)
    for head, row, column in np.ndindex(out.shape):
        part = mask[head, row * per_cell : (row + 1) * per_cell, column * per_cell : (column + 1) * per_cell]
        out[head, row, column] = part.sum() / part.size
    return out


def masks(heads: int, blocks: int, share: float = 0.3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((heads, blocks, blocks)) < share


def weights(blocks: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(0, 3, (blocks, blocks)).astype(np.float32)


def overview(mask: np.ndarray, per_cell: int = 1, **more: Any) -> shared.View:
    blocks = mask.shape[1]
    given = {"blocks": blocks, "block_size": 128, "prompt_blocks": blocks - 1, **more}
    return layer_figure.overview(averaged(mask, per_cell), per_cell, 3, **given)


def detail(mask: np.ndarray, **more: Any) -> shared.View:
    blocks = len(mask)
    return head_figure.head_detail(
        mask,
        layer=3,
        head=5,
        length=32 * blocks - 10,
        prompt_length=32 * (blocks - 1),
        block_size=32,
        prompt_blocks=blocks - 1,
        **more,
    )


def every_view() -> dict[str, shared.View]:
    mask, rng = masks(4, 7), np.random.default_rng(2)
    return {
        "overview": overview(mask),
        "coarse overview": overview(mask, 2, kept_mass=[0.9, 0.8, 0.7, 0.6]),
        "atlas": model.atlas([averaged(mask, 2)] * 3, 2, blocks=7, block_size=64, prompt_blocks=5),
        "mask": detail(mask[0]),
        "importance": detail(mask[0], importance=weights(7), show="importance"),
        "both": detail(mask[0], importance=weights(7), kept_mass=0.87, words=["word"] * 7),
        "many blocks": detail(masks(1, 70)[0], importance=weights(70)),
        "all kept": detail(np.ones((3, 3), dtype=bool), importance=weights(3)),
        "nothing important": detail(mask[0], importance=np.zeros((7, 7), dtype=np.float32)),
        "overlap": layer_figure.overlap_matrix(rng.random((4, 4)), 1),
        "overlap of one": layer_figure.overlap_matrix(np.ones((1, 1)), 1),
        "bars": layer_figure.kept_mass_bars([0.9, 0.8], [0.3, 0.31], 0),
        "tracking": later_steps.tracking([3, 7, 9], rng.random((3, 2, 4)), 2),
        "tracking without a switch": later_steps.tracking([3], rng.random((1, 2, 4)), None),
    }


@pytest.mark.parametrize("name", list(every_view()))
def test_plotly_accepts_every_figure_and_it_is_json_with_a_label(name: str) -> None:
    view = every_view()[name]
    go.Figure(view.figure)
    text = json.dumps(view._asdict(), allow_nan=False)
    assert json.loads(text)["label"].endswith(".") and "nan" not in view.label


def test_colours_are_variables_that_both_designs_define() -> None:
    used = set(re.findall(r"var\(--(?:sd-)?([\w-]+)\)", json.dumps([view.figure for view in every_view().values()])))
    assert len(used) > 5
    for name in used:
        assert name in palette() and name in palette(dark=True)
    for view in every_view().values():
        assert not re.search(r"#[0-9a-f]{6}|rgb\(", json.dumps(view.figure))


def test_kept_and_skipped_shades_differ_in_lightness_in_both_designs() -> None:
    scale = detail(masks(1, 5)[0], importance=weights(5)).figure["data"][0]["colorscale"]
    (_, palest), (at, darkest), (after, first_kept), (_, last_kept) = scale
    # The jump lies between the codes 127 and 128 of 0 … 255.
    assert 127 / 255 < at == after < 128 / 255

    def lightness(colour: str, dark: bool) -> float:
        code = palette(dark)[colour.removeprefix("var(--sd-").removesuffix(")")]
        parts = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for design in (False, True):
        values = [lightness(colour, design) for colour in (palest, darkest, first_kept, last_kept)]
        assert values == sorted(values, reverse=not design)
        paler, other = max(values[1:3]), min(values[1:3])
        assert (paler + 0.05) / (other + 0.05) >= 2.9


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<f4", ">f8"])
def test_typed_arrays_hold_the_values(dtype: str) -> None:
    values = np.arange(12).reshape(3, 4).astype(dtype).T
    assert untyped(shared.typed(values)).tolist() == values.tolist()


# ---- all heads of a layer


@pytest.mark.parametrize(
    ("heads", "columns", "expected"),
    [
        (4, 8, (4, 1)),
        (12, 8, (6, 2)),
        (16, 8, (8, 2)),
        (28, 8, (7, 4)),
        (32, 8, (8, 4)),
        (28, 4, (4, 7)),
        (5, 1, (1, 5)),
    ],
)
def test_heads_stand_in_even_rows(heads: int, columns: int, expected: tuple[int, int]) -> None:
    assert layer_figure.grid(heads, columns) == expected
    layout = overview(masks(heads, 3), columns=columns).figure["layout"]
    boxes = {(axis["domain"][0], axis["domain"][1]) for name, axis in layout.items() if name.startswith("xaxis")}
    assert len(boxes) == expected[0]
    rows = {tuple(axis["domain"]) for name, axis in layout.items() if name.startswith("yaxis")}
    assert len(rows) == expected[1]
    for edges in (sorted(boxes), sorted(rows)):
        flat = [edge for box in edges for edge in box]
        assert flat == sorted(flat) and flat[0] >= 0 and flat[-1] <= 1


@pytest.mark.parametrize("per_cell", [1, 4])
def test_the_overview_shows_each_head_and_says_which_it_is(per_cell: int) -> None:
    mask = masks(6, 18)
    figure, label = overview(mask, per_cell, prompt_blocks=13)
    assert [trace["meta"] for trace in figure["data"]] == [{"layer": 3, "head": head} for head in range(6)]
    for head, trace in enumerate(figure["data"]):
        drawn = untyped(trace["z"])
        assert abs(drawn - 100 * averaged(mask, per_cell)[head]).max() <= 0.5001
        if per_cell == 1:
            assert (drawn == 100 * mask[head]).all()
        # A cell's place is the middle of the blocks that it covers.
        covered = np.arange(18)[:per_cell]
        assert trace["x0"] == trace["y0"] == covered.mean() and trace["dx"] == trace["dy"] == per_cell
        note = figure["layout"]["annotations"][head]
        percent = f"{100 * mask[head].mean():.0f} %"
        assert note["text"] == f"<b>{head}</b> · {percent}" and f"{head}: {percent}" in label
        assert note["xref"] == f"{trace['xaxis']} domain" and note["yref"] == f"{trace['yaxis']} domain"
    lines = figure["layout"]["shapes"]
    assert len(lines) == 12 and {line["xref"] for line in lines} == {trace["xaxis"] for trace in figure["data"]}
    assert all(line["x0"] == line["x1"] == 12.5 or line["y0"] == line["y1"] == 12.5 for line in lines)


def test_the_overview_says_its_scale_and_the_mass_kept() -> None:
    figure, label = overview(masks(2, 8), 4, kept_mass=[0.918, 0.0042], block_size=32)
    subtitle = figure["layout"]["title"]["subtitle"]["text"]
    assert "1 cell = 4 × 4 blocks of 32 tokens" in subtitle and "attention" in subtitle
    assert [note["text"] for note in figure["layout"]["annotations"]] == ["<b>0</b> · 92 %", "<b>1</b> · 0.42 %"]
    assert "0: 92 %, 1: 0.42 %" in label
    assert "1 cell = 1 block of" in overview(masks(2, 8)).figure["layout"]["title"]["subtitle"]["text"]


def test_one_layer_of_32_heads_at_64k_stays_below_two_megabytes() -> None:
    thumbs = np.random.default_rng(0).random((32, 128, 128)).astype(np.float32)
    view = layer_figure.overview(thumbs, 4, 0, [0.9] * 32, blocks=512, block_size=128, prompt_blocks=511)
    assert len(json.dumps(view._asdict())) < TWO_MEGABYTES


def test_one_head_at_128k_stays_below_two_megabytes() -> None:
    """Every cell with its shade; the numbers that are four times as much stay here, and the figure says so."""
    blocks, random = 1025, np.random.default_rng(0)
    mask, importance = random.random((2, blocks, blocks)).astype(np.float16)
    given = {"length": 131_200, "prompt_length": 131_072, "block_size": 128, "prompt_blocks": 1024}
    view = head_figure.head_detail(mask < 0.3, layer=0, head=0, importance=importance, **given)
    assert len(json.dumps(view._asdict())) < TWO_MEGABYTES
    (trace,) = view.figure["data"]
    assert untyped(trace["z"]).shape == (blocks, blocks) and "customdata" not in trace
    assert np.array_equal(untyped(trace["z"]) >= trace["meta"]["kept_from"], mask < 0.3)
    said = "more than 640 × 640 cells: shades alone, without the number of each"
    assert said in view.figure["layout"]["title"]["subtitle"]["text"]
    given = {"length": 65_664, "prompt_length": 65_536, "block_size": 128, "prompt_blocks": 512}
    small = (mask < 0.3)[:513, :513], importance[:513, :513]
    figure = head_figure.head_detail(small[0], layer=0, head=0, importance=small[1], **given).figure
    assert "customdata" in figure["data"][0] and said not in figure["layout"]["title"]["subtitle"]["text"]


def test_thumbnails_that_do_not_fit_the_sequence_are_refused() -> None:
    with pytest.raises(ValueError, match="do not cover 9 blocks"):
        layer_figure.overview(np.zeros((2, 4, 4)), 2, 0, blocks=9, block_size=32, prompt_blocks=4)
    with pytest.raises(ValueError, match=r"must be \[heads, cells, cells\]"):
        layer_figure.overview(np.zeros((4, 4)), 2, 0, blocks=8, block_size=32, prompt_blocks=4)


# ---- the whole model


def test_every_tile_of_the_atlas_is_its_heads_thumbnail() -> None:
    layers = [averaged(masks(5, 9, seed=seed), 2) for seed in range(3)]
    figure, _ = model.atlas(layers, 2, blocks=9, block_size=64, prompt_blocks=6, first_layer=10)
    (trace,) = figure["data"]
    image = untyped(trace["z"])
    seen = np.zeros(image.shape, dtype=bool)
    assert image.shape == (3 * 6, 5 * 6)
    for layer, head, row, column in np.ndindex(3, 5, 5, 5):
        place = layer * 6 + row, head * 6 + column
        assert abs(image[place] - 100 * layers[layer][head, row, column]) <= 0.5001
        seen[place] = True
    assert (image[~seen] == model.GAP).all()
    # A click tells the head and the layer by rounding, gaps included.
    xs = [trace["x0"] + trace["dx"] * column for column in range(30)]
    ys = [trace["y0"] + trace["dy"] * row for row in range(18)]
    assert [round(x) for x in xs] == [column // 6 for column in range(30)]
    assert [round(y) for y in ys] == [10 + row // 6 for row in range(18)]
    assert trace["meta"]["layers"] == [10, 11, 12]


def test_the_atlas_draws_the_boundary_in_every_tile() -> None:
    figure, _ = model.atlas([averaged(masks(2, 9), 2)] * 3, 2, blocks=9, block_size=64, prompt_blocks=6)
    (shape,) = figure["layout"]["shapes"]
    strokes = re.findall(r"M([-.\d]+),([-.\d]+)L([-.\d]+),([-.\d]+)", shape["path"])
    assert len(strokes) == 2 * 2 * 3
    # Six of nine blocks are prompt: three cells of two blocks each; a tile has five cells and a gap.
    upright = {(float(a), float(c)) for a, _, c, _ in strokes if a == c}
    assert upright == {(0.0, 0.0), (1.0, 1.0)}
    level = {float(b) for _, b, _, d in strokes if b == d}
    assert level == {0.0, 1.0, 2.0}


def test_the_atlas_draws_the_boundary_in_the_last_cell_by_the_blocks_it_covers() -> None:
    # Eleven blocks in three cells: the last covers three, two of them prompt.
    figure, _ = model.atlas([averaged(masks(1, 11), 4)], 4, blocks=11, block_size=64, prompt_blocks=10)
    x = float(re.findall(r"M([-.\d]+),", figure["layout"]["shapes"][0]["path"])[0])
    assert x == pytest.approx(-0.5 + (2 + 2 / 3) / 4, abs=1e-5)


def test_the_atlas_of_32_by_32_heads_stays_below_two_megabytes() -> None:
    thumbs = [np.random.default_rng(0).random((32, 20, 20)).astype(np.float32)] * 32
    view = model.atlas(thumbs, 26, blocks=513, block_size=128, prompt_blocks=512)
    assert len(json.dumps(view._asdict())) < TWO_MEGABYTES


# ---- one head


@pytest.mark.parametrize("blocks", [2, 3, 64, 65, 129])
@pytest.mark.parametrize("show", ["both", "importance", "kept"])
@pytest.mark.parametrize("known", [True, False])
def test_the_mask_can_be_read_back_from_what_is_drawn(blocks: int, show: Any, known: bool) -> None:
    mask = masks(1, blocks)[0]
    figure, label = detail(mask, importance=weights(blocks) if known else None, show=show)
    assert (drawn_mask(figure) == mask).all()
    kept = f"{100 * sum(map(sum, mask.tolist())) / blocks**2:.1f} % of blocks kept"
    assert kept in figure["layout"]["title"]["subtitle"]["text"] and kept in label
    assert figure["layout"]["title"]["text"] == "Layer 3, head 5"
    edges = [shape for shape in figure["layout"]["shapes"] if shape["name"] == "boundary"]
    assert edges[0]["x0"] == edges[0]["x1"] == edges[1]["y0"] == edges[1]["y1"] == blocks - 1.5


def test_without_importance_a_cell_says_whether_it_is_kept_and_on_which_side() -> None:
    mask = masks(1, 6)[0]
    rest = {"layer": 0, "head": 1, "length": 190, "prompt_length": 100, "block_size": 32, "prompt_blocks": 4}
    figure, _ = head_figure.head_detail(mask, **rest)
    (trace,) = figure["data"]
    cells = untyped(trace["z"])
    for row in range(6):
        for key in range(6):
            assert cells[row, key] == (0 if not mask[row, key] else 1 if key < 4 else 2)
    assert trace["x"] == trace["y"] == base.block_labels(190, 100, 32, 4)


def test_the_share_of_attention_is_that_of_the_row_and_negative_where_skipped() -> None:
    mask, importance = masks(1, 6)[0], weights(6)
    figure, _ = detail(mask, importance=importance)
    shown = untyped(figure["data"][0]["customdata"])
    # 182 tokens in blocks of 32: the last one has 22.
    tokens = [32, 32, 32, 32, 32, 22]
    for row in range(6):
        masses = [float(importance[row, key]) * tokens[key] for key in range(6)]
        for key in range(6):
            expected = masses[key] / sum(masses)
            assert shown[row, key] == pytest.approx(expected if mask[row, key] else -expected, rel=1e-5)
    assert figure["data"][0]["hoverinfo"] == "none"  # tests/app/test_playhead.py reads what the browser says of a cell


def test_an_importance_of_zero_still_tells_kept_from_skipped() -> None:
    mask = masks(1, 4)[0]
    figure, _ = detail(mask, importance=np.zeros((4, 4), dtype=np.float32))
    shown = untyped(figure["data"][0]["customdata"])
    assert ((shown < 0) == ~mask).all() and (drawn_mask(figure) == mask).all()


def test_levels_rise_with_the_share_of_attention_among_kept_and_among_skipped_cells() -> None:
    mask, importance = masks(1, 40)[0], np.sqrt(weights(40))
    trace = detail(mask, importance=importance).figure["data"][0]
    codes, share = untyped(trace["z"]).astype(int), abs(untyped(trace["customdata"]))
    for cells, first in ((~mask, 0), (mask, head_figure.LEVELS)):
        order = np.argsort(share[cells])
        levels = codes[cells][order]
        assert (np.diff(levels) >= 0).all()
        assert levels[0] == first and levels[-1] == first + head_figure.LEVELS - 1
        # Logarithmic: in the middle of the scale stands the geometric mean of its ends.
        ends = share[cells][order][len(order) // 50], share[cells].max()
        nearest = np.abs(np.log(share[cells][order] / np.sqrt(ends[0] * ends[1]))).argmin()
        assert abs(levels[nearest] - first - head_figure.LEVELS / 2) < 8


def test_the_outline_is_drawn_exactly_between_kept_and_skipped_cells() -> None:
    mask = masks(1, 9)[0]
    (outline,) = [s for s in detail(mask, importance=weights(9)).figure["layout"]["shapes"] if s["name"] == "kept"]
    drawn = re.findall(r"M([-.\d]+),([-.\d]+)([VH])([-.\d]+)", outline["path"])
    found = {(kind, float(x), float(y)) for x, y, kind, _ in drawn}
    assert len(found) == len(drawn)

    def kept(row: int, key: int) -> bool:
        return 0 <= row < 9 and 0 <= key < 9 and bool(mask[row, key])

    expected = set()
    for row in range(10):
        for key in range(10):
            if kept(row, key) != kept(row, key - 1):
                expected.add(("V", key - 0.5, row - 0.5))
            if kept(row, key) != kept(row - 1, key):
                expected.add(("H", key - 0.5, row - 0.5))
    assert found == expected
    assert all(float(end) == float(y if kind == "V" else x) + 1 for x, y, kind, end in drawn)
    many = detail(masks(1, 65)[0], importance=weights(65)).figure["layout"]["shapes"]
    assert all(shape["name"] == "boundary" for shape in many)


def test_words_stand_in_the_hover_as_text_and_labels_stay_different() -> None:
    words = ["<a href='x'>one</a>\n & two", "", "word " * 40, "same", "same"]
    trace = detail(masks(1, 5)[0], words=words).figure["data"][0]
    assert trace["x"] == trace["y"] and len(set(trace["x"])) == 5
    assert trace["x"][0].startswith("0 · tokens 0–31 · prompt<br>“&lt;a href='x'&gt;one&lt;/a&gt; &amp; two”")
    assert "<br>" not in trace["x"][1]
    assert trace["x"][2].endswith("word…”") and len(trace["x"][2]) < 90


def test_a_head_of_513_blocks_stays_below_two_megabytes_and_is_not_merged() -> None:
    mask = masks(1, 513)[0]
    view = detail(mask, importance=weights(513), kept_mass=0.9, words=["x" * 48] * 513)
    assert (drawn_mask(view.figure) == mask).all() and mask.shape == (513, 513)
    assert len(json.dumps(view._asdict())) < TWO_MEGABYTES


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    mask = masks(1, 5)[0]
    with pytest.raises(ValueError, match="importance must be of the mask's shape"):
        detail(mask, importance=weights(4))
    with pytest.raises(ValueError, match="words must hold 5 entries, not 4"):
        detail(mask, words=["a"] * 4)
    with pytest.raises(ValueError, match="mask must be 5 × 5"):
        detail(mask[:, :4])


# ---- numbers of a layer's heads


def test_the_overlap_matrix_leaves_the_diagonal_empty_and_says_the_mean_of_the_rest() -> None:
    overlap = np.array([[1.0, 0.2, 0.4], [0.2, 1.0, 0.6], [0.4, 0.6, 1.0]])
    figure, label = layer_figure.overlap_matrix(overlap, 7)
    assert figure["data"][0]["z"] == [[None, 0.2, 0.4], [0.2, None, 0.6], [0.4, 0.6, None]]
    assert "two heads share 40 %" in figure["layout"]["title"]["text"]
    assert "layer 7" in label and "at least 20 %, at most 60 %" in label
    with pytest.raises(ValueError, match="square"):
        layer_figure.overlap_matrix(np.ones((2, 3)), 0)


def test_bars_are_the_mass_and_marks_the_blocks_of_each_head() -> None:
    figure, label = layer_figure.kept_mass_bars([0.9, 0.55, 0.8], [0.3, 0.31, 0.32], 2)
    bars, marks = figure["data"]
    assert bars["type"] == "bar" and marks["mode"] == "markers"
    assert bars["x"] == marks["x"] == [0, 1, 2]
    assert bars["y"] == [90, 55, 80] and marks["y"] == [30, 31, 32]
    assert "75.0 % of attention in 31.0 % of blocks" in figure["layout"]["title"]["text"]
    assert "least in head 1, 55.0 %" in label
    with pytest.raises(ValueError, match="not 2 and 1"):
        layer_figure.kept_mass_bars([0.5, 0.5], [0.3], 0)


# ---- from step to step


def test_tracking_shows_mean_and_range_at_the_steps_counted_from_one() -> None:
    overlap = np.random.default_rng(4).random((3, 2, 5))
    figure, label = later_steps.tracking([3, 6, 9], overlap, 3)
    lines = {trace["name"]: trace for trace in figure["data"]}
    for index in range(3):
        heads = [100 * float(overlap[index, layer, head]) for layer in range(2) for head in range(5)]
        layers = [100 * sum(map(float, overlap[index, layer])) / 5 for layer in range(2)]
        expected = {
            "best head": max(heads),
            "best layer": max(layers),
            "mean of all heads": sum(heads) / 10,
            "worst layer": min(layers),
            "worst head": min(heads),
        }
        assert {name: line["y"][index] for name, line in lines.items()} == pytest.approx(expected, abs=0.006)
    assert all(line["x"] == [4, 7, 10] for line in lines.values())
    # Told apart by line style and marker, not by colour alone.
    mean, worst = lines["mean of all heads"], lines["worst head"]
    assert mean["line"].get("dash") != worst["line"]["dash"] and mean["line"]["width"] > worst["line"]["width"]
    (line,) = figure["layout"]["shapes"]
    assert line["name"] == "switch" and line["x0"] == line["x1"] == 3.5
    assert figure["layout"]["xaxis"]["range"][0] < 3.5 and figure["layout"]["xaxis"]["range"][1] > 10
    assert f"{100 * overlap[2].mean():.1f} %" in label and "after step 10" in label
    assert later_steps.tracking([3], overlap[:1], None).figure["layout"]["shapes"] == []
    with pytest.raises(ValueError, match="2 steps"):
        later_steps.tracking([1, 2], overlap, None)
