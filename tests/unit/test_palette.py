"""Colours have one home, and those of the lanes can be read and told apart in both designs."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from app.assets import PAGE
from app.figures.palette import LANES, palette
from app.page.serving import SCRIPTS, STYLES

# What people see who lack one kind of cone (Machado, Oliveira, Fernandes 2009, severity 1), in linear light.
SIGHTS = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])


def linear(code: str) -> np.ndarray:
    """"#rrggbb" → red, green and blue in linear light, 0 … 1."""
    values = np.array([int(code[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """As WCAG counts it, 1 … 21."""
    low, high = sorted(float(TO_XYZ[1] @ linear(code)) for code in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(code: str, sight: np.ndarray) -> np.ndarray:
    """CIE L*a*b*, in which distances are about as far as they look."""
    values = TO_XYZ @ np.clip(sight @ linear(code), 0, 1) / WHITE
    curved = np.where(values > 0.008856, np.cbrt(values), 7.787 * values + 16 / 116)
    return np.array([116 * curved[1] - 16, 500 * (curved[0] - curved[1]), 200 * (curved[1] - curved[2])])


@pytest.mark.parametrize("dark", [False, True])
def test_lanes_can_be_read_on_every_surface(dark: bool) -> None:
    colours = palette(dark)
    for place in range(1, len(LANES) + 1):
        for surface in ("page", "panel", "raised"):
            assert contrast(colours[f"lane-{place}"], colours[surface]) >= 4.5, (place, surface)
        assert contrast(colours["ink"], colours[f"lane-{place}-soft"]) >= 4.5, place


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("dark", [False, True])
def test_lanes_can_be_told_apart_with_any_eyes(dark: bool, sight: str) -> None:
    lanes = [lab(palette(dark)[f"lane-{place}"], SIGHTS[sight]) for place in range(1, len(LANES) + 1)]
    assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(lanes, 2)) >= 14
    assert len({(style.dash, style.symbol) for style in LANES}) == len(LANES) == 6


def test_both_designs_define_the_same_colours() -> None:
    light, dark = palette(), palette(dark=True)
    assert light.keys() == dark.keys() and len(light) > 30
    assert all(re.fullmatch("#[0-9a-f]{6}", code) for code in (*light.values(), *dark.values()))
    assert light["kept"] == light["lane-2"] != dark["lane-2"]


def test_colours_have_one_home() -> None:
    texts = {name: (PAGE / name).read_text(encoding="utf-8") for name in (*STYLES[1:], *SCRIPTS)}
    known = {f"--{name}" for name in palette()} | {f"--sd-{name}" for name in palette()}
    # Sizes, and a lane's colours by the name that it has inside it: these files hold no colour to set.
    known |= {name for text in texts.values() for name in re.findall(r"(--[\w-]+)\b[\"']?\s*[:,]", text)}
    for name, text in texts.items():
        assert not re.search(r"#[0-9a-f]{3}(?:[0-9a-f]{3})?\b(?! *[{.,>])|\b(?:rgba?|hsla?|oklch)\(", text), name
        if name.endswith(".css"):
            assert set(re.findall(r"var\((--[\w-]+)\)", text)) <= known, name


def test_every_file_of_the_page_is_served() -> None:
    # The heading of an export has no place on the page.
    assert {path.name for path in PAGE.iterdir()} - {"record.js"} == {*STYLES, *SCRIPTS}
    assert len(set(STYLES)) == len(STYLES) and len(set(SCRIPTS)) == len(SCRIPTS)
