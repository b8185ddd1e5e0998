"""How numbers are said: 1.4×, 12.4 s."""

from __future__ import annotations

# Stands after a number of percent: no line ends between the two.
PERCENT = "\N{NO-BREAK SPACE}%"
# Two runs of the same thing differ by as much on a machine that has other things to do.
SAME = 0.05


def points(share: float, digits: int = 1) -> str:
    """A difference of shares in percentage points, with its sign: "+1.3", "−6.4"; 0 has none."""
    said = f"{100 * share:+.{digits}f}"
    return said.replace("-", "−") if float(said) else f"{0:.{digits}f}"


def gain(ratio: float) -> tuple[str, str]:
    """How many times faster something is, above 0 → (the factor that is shown, what it says): ("1.50×", "slower")."""
    words = "about the same speed" if abs(ratio - 1) < SAME else "faster" if ratio > 1 else "slower"
    return f"{1 / ratio if words == 'slower' else ratio:.2f}×", words


def steps_in_words(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def milliseconds(seconds: float) -> str:
    """Seconds as "947 ms", "12.4 ms"; from ten seconds on as `clock` says them."""
    if seconds >= 10:
        return clock(seconds)
    return f"{1000 * seconds:.{0 if seconds >= 0.1 else 1}f} ms"


def clock(seconds: float) -> str:
    """Seconds as people read them: "0.84 s", "12.4 s", "3 min 05 s", "2 h 10 min"."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
