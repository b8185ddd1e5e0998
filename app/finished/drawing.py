"""Text and colours of the animation's frames."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from app.figures.palette import palette

# Looked for on the system, in this order, where Pillow's own font has no such character.
_FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "arial.ttf",
    "segoeui.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "msyh.ttc", "msgothic.ttc", "malgun.ttf",
    "wqy-microhei.ttc", "seguisym.ttf",
)  # fmt: skip
# Text on its background: the picture's palette holds the steps between them.
PAIRS = (
    ("ink", "page"), ("muted", "page"), ("line", "page"), ("ink", "panel"), ("muted", "panel"), ("good", "panel"),
    ("bad", "panel"), ("hatch", "panel"), ("ink", "raised"),
)  # fmt: skip
# A palette has so many colours.
_PALETTE = 256
Colours = dict[str, tuple[int, int, int]]


def theme_colours(dark: bool) -> Colours:
    """The page's colours by name, as red, green and blue."""
    return {name: (int(code[1:3], 16), int(code[3:5], 16), int(code[5:], 16)) for name, code in palette(dark).items()}


class Palette:
    """One palette for all frames, with every pair's steps, so that what stays the same keeps its colour."""

    def __init__(self, colours: Colours, pairs_of_names: Sequence[tuple[str, str]]) -> None:
        pairs = ((np.array(colours[front]), np.array(colours[back])) for front, back in pairs_of_names)
        shares = np.linspace(0, 1, _PALETTE // len(pairs_of_names))[:, None]
        mixed = np.concatenate([np.rint(back + shares * (front - back)) for front, back in pairs])
        self._colours = np.unique(mixed.astype(np.int32), axis=0)
        # Colour as one number → its entry, found when it is first met. (Pillow's own search is not exact.)
        self._entries = np.full(1 << 24, -1, dtype=np.int16)

    def apply(self, image: Image.Image) -> Image.Image:
        """The picture with each pixel's nearest entry."""
        pixels = np.asarray(image, dtype=np.int32)
        numbers = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
        for number in np.unique(numbers[self._entries[numbers] < 0]).tolist():
            colour = np.array([number >> 16, number >> 8 & 255, number & 255])
            self._entries[number] = np.square(self._colours - colour).sum(1).argmin()
        indexed = Image.fromarray(self._entries[numbers].astype(np.uint8))
        indexed.putpalette(self._colours.ravel().tolist())
        return indexed


class Typesetter:
    """Text of one size. What no font has is drawn as a box."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._own = ImageFont.load_default(size)
        self._chosen: dict[str, Any] = {}

    @staticmethod
    @lru_cache(maxsize=256)
    def _system(name: str, size: int) -> Any:
        try:
            return ImageFont.truetype(name, size, layout_engine=ImageFont.Layout.BASIC)
        except OSError:
            return None

    @staticmethod
    def _covers(font: Any, character: str) -> bool:
        def drawn(text: str) -> tuple[Any, bytes]:
            mask = font.getmask(text)
            return mask.size, bytes(mask)

        # The picture of what is not there is that of a character that cannot be there.
        return drawn(character) != drawn("\U0010ffff")

    def _font(self, character: str) -> Any:
        if character not in self._chosen:
            fonts = [self._own, *(self._system(name, self.size) for name in _FONTS)] if character > "~" else [self._own]
            found = [font for font in fonts if font is not None and self._covers(font, character)]
            self._chosen[character] = found[0] if found else None if character > " " else self._own
        return self._chosen[character]

    def runs(self, text: str) -> list[tuple[Any, str]]:
        """The text in pieces of one font each; None for the font of what no font has."""
        pieces: list[tuple[Any, str]] = []
        for character in _clean(text):
            font = self._font(character)
            if pieces and pieces[-1][0] is font:
                pieces[-1] = (font, pieces[-1][1] + character)
            else:
                pieces.append((font, character))
        return pieces

    def _length(self, font: Any, text: str) -> float:
        return float(font.getlength(text)) if font is not None else 0.7 * self.size * len(text)

    def width(self, text: str) -> float:
        """In pixels."""
        return sum(self._length(font, piece) for font, piece in self.runs(text))

    def draw(self, draw: ImageDraw.ImageDraw, x: float, y: float, text: str, fill: tuple[int, int, int]) -> float:
        """Writes the text with its baseline at y; returns where it ends."""
        for font, piece in self.runs(text):
            if font is None:
                for number in range(len(piece)):
                    left = x + 0.7 * self.size * number
                    draw.rectangle((left + 1, y - 0.7 * self.size, left + 0.6 * self.size, y), outline=fill)
            else:
                draw.text((x, y), piece, fill=fill, font=font, anchor="ls")
            x += self._length(font, piece)
        return x

    def fit(self, text: str, most: float) -> str:
        """The text, or as much of its beginning as is at most so wide, and " …"."""
        if self.width(text) <= most:
            return text
        text = text[:400]
        while text and self.width(text + " …") > most:
            text = text[:-1]
        return text.rstrip() + " …"


def _clean(text: str) -> str:
    """Without what has no picture: control characters and the no-break space, which not every font has, become spaces,
    invisible ones go.
    """
    kinds = ((character, unicodedata.category(character)) for character in text.replace("\N{NO-BREAK SPACE}", " "))
    return "".join(
        " " if kind == "Cc" else "\ufffd" if kind == "Cs" else character for character, kind in kinds if kind != "Cf"
    )
