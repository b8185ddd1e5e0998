/* How numbers are said. `clock` is that of app/phrases.py, case by case (tests/unit/test_format.py). */
(() => {
  "use strict";

  const MIB = 2 ** 20;
  const GIB = 2 ** 30;

  // Half way between two numbers it takes the even one, as Python does: a half is exact in binary, so it can be seen.
  function fixed(value, digits) {
    const text = value.toFixed(digits);
    const half = (value * 2 ** (digits + 1)) % 2 === 1;
    return half && Number(text.at(-1)) % 2 ? (value - 10 ** -digits / 4).toFixed(digits) : text;
  }

  function clock(seconds) {
    if (seconds < 9.995) return `${fixed(seconds, 2)} s`;
    if (seconds < 59.95) return `${fixed(seconds, 1)} s`;
    const whole = Number(fixed(seconds, 0));
    const minutes = Math.floor(whole / 60);
    if (minutes < 60) return `${minutes} min ${String(whole % 60).padStart(2, "0")} s`;
    return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
  }

  function milliseconds(value) {
    if (value >= 10_000) return clock(value / 1000);
    return `${value < 100 ? value.toFixed(1) : Math.round(value)} ms`;
  }

  const number = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en-US"));

  function bytes(value) {
    if (value === null) return "–";
    return value < GIB ? `${Math.round(value / MIB)} MiB` : `${(value / GIB).toFixed(value < 10 * GIB ? 2 : 1)} GiB`;
  }

  // No line ends between the two.
  const percent = (digits) => `${digits}\u00a0%`;

  window.sparsed.format = { clock, milliseconds, number, bytes, percent };
})();
