/* One lane of the race: its phases and figures, and the canvas of its tokens. */
(() => {
  "use strict";

  const { el, setText, setAttribute, show } = window.sparsed.tools;
  const { clock, milliseconds } = window.sparsed.format;

  // Characters that change the direction of what follows them. A cell that holds one is isolated; all others are not,
  // so that a sentence in Hebrew or Arabic reads as it should.
  const TURNING = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/;
  // So many steps that select are named one by one.
  const MOST_NAMED = 6;
  const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]|[\ud802\ud803\ud83a\ud83b]/;

  // A token's text among words of ours, which it must not turn around.
  function quoted(text) {
    if (!TURNING.test(text) && !RIGHT_TO_LEFT.test(text)) return text;
    return `\u2068${text.replace(new RegExp(TURNING, "g"), "")}\u2069`;
  }

  function rowsOf(count, all) {
    return count < all ? `${count.toLocaleString("en")} of ${all.toLocaleString("en")}` : `all ${all.toLocaleString("en")}`;
  }

  // A score in one line: its number, and what it says.
  function scoreLine(name) {
    const number = el("b", {});
    const words = el("span", {});
    const root = el("p", { class: name, hidden: "" }, number, " ", words);
    return {
      root,
      draw(score) {
        show(root, Boolean(score));
        if (!score) return;
        setText(number, score.text);
        setAttribute(number, "data-unsteady", score.unsteady ? "" : null);
        setText(words, score.words);
        setAttribute(root, "title", score.detail);
      },
    };
  }

  // Every step of some ranges [phase, first, last], of which one that goes on has no last.
  function stepsIn(ranges) {
    return ranges.flatMap(([, from, to]) => Array.from({ length: (to ?? from) - from + 1 }, (_, i) => from + i));
  }

  // [share of the progress bar, what happens there]: the switch, or each step that selects, where there are several.
  function marksOf(lane) {
    const ranges = lane.phases.filter(([name]) => name === "select");
    const last = lane.phases.at(-1);
    const selects = stepsIn(ranges);
    const sparse = lane.phases.find(([name]) => name === "sparse");
    const first = selects.length === 1 && last[1] > selects[0] ? selects[0] + 1 : sparse && sparse[1];
    const found = selects.length > 1
      ? selects.map((step) => [step, `selects in step ${step}`])
      : first ? [[first, `sparse from step ${first} of ${lane.at_most ? "at most " : ""}${lane.total}`]] : [];
    return found.map(([step, said]) => [placeOf(lane, step), said]).filter(([place]) => place !== null);
  }

  // Where on the bar a step begins. Where nobody knows how many steps there will be, the bar counts tokens: null before
  // the step is reached.
  function placeOf(lane, step) {
    if (!lane.at_most) return (step - 1) / lane.total;
    if (lane.step < step - 1) return null;
    const committed = lane.cells.filter(([, at]) => at);
    const all = lane.state === "done" ? committed.length : lane.cells.length;
    return committed.filter(([, at]) => at < step).length / Math.max(1, all);
  }

  function laneView(key) {
    const heading = `sd-lane-${key}-title`;
    const backend = el("span", { class: "sd-backend" });
    const whose = el("span", { class: "sd-whose", hidden: "" });
    const never = el("span", { class: "sd-never", hidden: "" }, "never sparse");
    const phases = el("ol", { class: "sd-phases", "aria-label": "Phases" });
    const step = el("dd", {});
    const elapsed = el("dd", {});
    const paceMiddle = el("span", {});
    const paceWithin = el("span", { class: "sd-within" });
    const pace = el("dd", {}, paceMiddle, paceWithin);
    const rate = el("dd", {});
    const rows = el("dd", {});
    const fill = el("i", {});
    const marks = el("span", { class: "sd-marks" });
    const bar = el("div", { class: "sd-progress", role: "progressbar", "aria-labelledby": heading, "aria-valuemin": 0, "aria-valuemax": 100 }, el("span", { class: "sd-fill" }, fill), marks);
    const canvas = el("div", { class: "sd-canvas", role: "listbox", "aria-orientation": "horizontal", "aria-labelledby": heading, tabindex: "0" });
    const tip = el("p", { class: "sd-tip", hidden: "" });
    const early = el("p", { class: "sd-early", hidden: "" }, "The answer was complete: what is still masked was left out.");
    const verdict = el("p", { class: "sd-verdict" });
    const gain = scoreLine("sd-lane-gain");
    const same = scoreLine("sd-lane-same");
    const scores = el("div", { class: "sd-lane-scores" }, gain.root, same.root);
    const title = el("h2", { id: heading });
    const figure = (name, node) => el("div", { "data-figure": name }, el("dt", {}, name), node);
    const counted = figure("rows", rows);
    const root = el("article", { "data-lane": key, "aria-labelledby": heading },
      el("div", { class: "sd-lane-head" }, title, el("p", { class: "sd-lane-sub" }, never, whose, backend),
        el("dl", { class: "sd-figures" }, figure("step", step), figure("time", elapsed), figure("per step", pace), figure("speed", rate), counted)),
      bar, phases, el("div", { class: "sd-canvas-box" }, canvas, early, tip),
      el("div", { class: "sd-lane-end" }, verdict, scores));
    let cells = [];
    let drawn = 0;
    let data = [];
    let active = -1;
    let leftOut = false; // what is masked stays so
    let there = 0; // cells of the canvas so far
    let computed = []; // rows of each step, where they are not all the same
    let positions = 0;
    let parallel = 0; // length of one semi-autoregressive block
    // Only a pointer that moves or presses points: one that lies still while the page changes under it takes no cell
    // away from the keyboard.
    let pointed = false;

    function describe(index) {
      const [text, at, confidence, end] = data[index];
      const seam = begins(index) ? "; a semi-autoregressive block begins here" : "";
      if (!at) return `Token ${index + 1}: ${empty(index)}${seam}`;
      const what = end ? "end of the answer" : `“${quoted(text)}”`;
      const sure = confidence === null ? "" : `, confidence ${confidence.toFixed(2)}`;
      const few = computed[at - 1] < positions ? `, which computed ${rowsOf(computed[at - 1], positions)} rows` : "";
      return `Token ${index + 1}: ${what}, committed in step ${at}${few}${sure}${seam}`;
    }

    // Is it the first of a later semi-autoregressive block?
    function begins(index) {
      return Boolean(parallel && index && index % parallel === 0);
    }

    // What a cell without a token is.
    function empty(index) {
      return leftOut ? "left out" : index < there ? "masked" : "not there yet";
    }

    // The name of a cell whose text says nothing; null where it does.
    function named([text, at, , isEnd], index, later) {
      if (!at) return empty(index);
      if (isEnd) return later ? "after the end" : "end of the answer";
      if (text.trim() || text.includes("\n")) return null;
      return text ? "space" : "part of the character before";
    }

    function point(index) {
      if (active >= 0 && cells[active]) cells[active].removeAttribute("aria-selected");
      active = index;
      const cell = cells[index];
      if (!cell) {
        window.sparsed.tools.pointAt?.(key, -1);
        tip.hidden = true;
        canvas.removeAttribute("aria-activedescendant");
        return;
      }
      cell.setAttribute("aria-selected", "true");
      canvas.setAttribute("aria-activedescendant", cell.id);
      const said = describe(index);
      cell.setAttribute("aria-label", said);
      const evidence = window.sparsed.tools.pointAt?.(key, index);
      tip.textContent = evidence ? `${said}\n${evidence}` : said;
      tip.hidden = false;
      // What the keyboard moves to comes into sight inside the canvas; the page stays where it is.
      const [above, below] = [cell.offsetTop, cell.offsetTop + cell.offsetHeight - canvas.clientHeight];
      if (!pointed) canvas.scrollTop = Math.max(below, Math.min(above, canvas.scrollTop));
      const room = canvas.parentElement.clientWidth - tip.offsetWidth;
      tip.style.left = `${Math.max(0, Math.min(room, cell.offsetLeft))}px`;
      tip.style.top = `${cell.offsetTop + cell.offsetHeight + 4 - canvas.scrollTop}px`;
    }

    for (const kind of ["pointermove", "pointerdown"]) {
      canvas.addEventListener(kind, (event) => {
        const index = cells.indexOf(event.target.closest(".sd-cell"));
        if (index < 0) return;
        pointed = true;
        if (index !== active) point(index);
      });
    }
    canvas.addEventListener("pointerleave", () => { if (pointed) point(-1); });
    canvas.addEventListener("blur", () => point(-1));
    canvas.addEventListener("keydown", (event) => {
      pointed = false;
      const moves = { ArrowRight: active + 1, ArrowDown: active + 1, ArrowLeft: active - 1, ArrowUp: active - 1, Home: 0, End: cells.length - 1 };
      if (event.key === "Escape") point(-1);
      if (!(event.key in moves)) return;
      event.preventDefault();
      point(Math.max(0, Math.min(cells.length - 1, moves[event.key])));
    });

    function drawCells(lane, other) {
      const before = JSON.stringify(data.map(([text, at]) => [text, at]));
      data = lane.cells;
      leftOut = lane.ended_early;
      there = lane.there;
      computed = lane.step_rows ?? [];
      positions = lane.positions;
      parallel = lane.parallel;
      if (cells.length !== data.length) {
        cells = data.map((_, index) => el("span", { class: "sd-cell", role: "option", id: `sd-${key}-${index}` }));
      }
      const end = data.findIndex((cell) => cell[3] === 1);
      const running = lane.state === "running";
      for (let i = 0; i < data.length; i += 1) {
        const [text, at, , isEnd] = data[i];
        const node = cells[i];
        let kind = "settled";
        if (!at) kind = "masked";
        else if (isEnd || (end >= 0 && i > end)) kind = "end";
        // Committed since the picture before this one; an end token too, it only looks different.
        const fresh = Boolean(at) && running && at > (lane.since ?? drawn);
        if (fresh && kind === "settled") kind = "fresh";
        setText(node, !at ? "" : isEnd ? (i === end ? " ∎" : "·") : text.replace(/\n/g, "↵\n"));
        setAttribute(node, "aria-label", named(data[i], i, i > end));
        setAttribute(node, "data-turns", text && TURNING.test(text) ? "" : null);
        setAttribute(node, "data-state", kind);
        setAttribute(node, "data-step", at || null);
        setAttribute(node, "data-left-out", !at && leftOut ? "" : null);
        setAttribute(node, "data-later", !at && !leftOut && i >= there ? "" : null);
        setAttribute(node, "data-seam", begins(i) ? "" : null);
        const theirs = other && other.cells[i];
        const longer = other ? Math.max(end, other.cells.findIndex((cell) => cell[3] === 1)) : -1;
        // Two end tokens are alike, whatever they are called.
        const differs = theirs && (longer < 0 || i <= longer) && (theirs[3] !== isEnd || (!isEnd && theirs[0] !== text));
        setAttribute(node, "data-differs", differs ? "" : null);
      }
      // Words that are written push their neighbours along, in here alone: they are laid out anew, as a new picture.
      if (before !== JSON.stringify(data.map(([text, at]) => [text, at]))) canvas.replaceChildren(...cells);
      if (active >= 0) point(active);
    }

    // The steps of one phase. A lane that selects again and again returns to it: a few steps are named, many counted.
    function stepsOf(name, ranges, atMost, most) {
      const [[, first, last]] = ranges;
      if (ranges.length === 1) return last === null ? `from step ${first}` : first === last ? `step ${first}` : `steps ${first}–${last}`;
      if (name === most) return `the others from ${first}`;
      if (atMost) return `step ${first} and again`;
      const steps = stepsIn(ranges);
      return steps.length <= MOST_NAMED ? `steps ${steps.join(", ")}` : `step ${first} and ${steps.length - 1} more`;
    }

    function drawPhases(lane) {
      const shown = JSON.stringify([lane.phases, lane.kind, lane.step > 0]);
      if (phases.dataset.shown === shown) return;
      phases.dataset.shown = shown;
      const atMost = lane.at_most && lane.state !== "done";
      const most = lane.step_rows ? "few rows" : "sparse";
      phases.replaceChildren(...[...new Set(lane.phases.map(([name]) => name))].map((name) => {
        const said = stepsOf(name, lane.phases.filter(([other]) => other === name), atMost, most);
        const current = lane.step > 0 && name === lane.kind;
        return el("li", { "data-phase": name, "aria-current": current ? "step" : null }, el("b", {}, name), ` ${said}`);
      }));
    }

    // The median, and half of what the middle half of the steps lies within.
    function drawPace({ ms_per_step: middle, ms_spread: spread }) {
      setText(paceMiddle, middle === null ? "–" : milliseconds(middle));
      setText(paceWithin, spread ? ` ± ${milliseconds((spread[1] - spread[0]) / 2).replace(" ms", "")}` : "");
      const said = spread && `The median of its steps; the middle half took ${milliseconds(spread[0])} to ${milliseconds(spread[1])}.`;
      setAttribute(pace, "title", said || null);
    }

    // Where the lane becomes sparse, on its own progress bar; where it selects again, each select.
    function drawMarks(lane) {
      const places = marksOf(lane);
      const shown = JSON.stringify(places);
      if (marks.dataset.shown === shown) return;
      marks.dataset.shown = shown;
      marks.replaceChildren(...places.map(([place, said]) =>
        el("span", { class: "sd-switch", style: `left: ${(100 * place).toFixed(2)}%`, title: said })));
    }

    return {
      root,
      reset() { drawn = 0; point(-1); canvas.scrollTop = 0; },
      // other: the lane that it is compared with. scored: its own scores stand in it; the headline's stand above, and
      // the reference has none. cached: a lane of this race computes some rows alone, so that each says how many.
      draw(lane, other, scored, cached) {
        setAttribute(root, "class", `sd-lane lane-${lane.style}`);
        setAttribute(root, "style", `--lane: var(--lane-${lane.style}); --lane-soft: var(--lane-${lane.style}-soft)`);
        setAttribute(root, "data-state", lane.state);
        setAttribute(root, "data-at-most", lane.at_most ? "" : null);
        setText(title, lane.label);
        setAttribute(title, "title", lane.label);
        show(whose, Boolean(lane.whose));
        setText(whose, lane.whose);
        show(never, lane.never_sparse);
        setText(backend, lane.backend);
        drawPhases(lane);
        drawMarks(lane);
        setText(step, `${lane.step || "–"} of ${lane.at_most ? "≤ " : ""}${lane.total}`);
        setText(elapsed, lane.step ? clock(lane.seconds) : "–");
        drawPace(lane);
        show(counted, cached);
        setAttribute(rows, "title", "rows computed in the last step");
        setAttribute(counted, "data-few", lane.rows < lane.positions ? "" : null);
        setText(rows, lane.rows === null ? "–" : rowsOf(lane.rows, lane.positions));
        setText(rate, lane.tokens_per_second === null ? "–" : `${lane.tokens_per_second.toFixed(lane.tokens_per_second < 1 ? 2 : 1)} tokens/s`);
        setAttribute(bar, "aria-valuenow", Math.round(100 * lane.progress));
        fill.style.transform = `scaleX(${lane.progress})`;
        drawCells(lane, other);
        drawn = lane.step;
        show(early, lane.ended_early);
        setText(verdict, lane.verdict ? `${lane.right ? "✓" : "✗"} ${lane.verdict}` : "");
        setAttribute(verdict, "title", lane.verdict);
        setAttribute(verdict, "data-right", lane.verdict ? String(lane.right) : null);
        show(scores, scored);
        gain.draw(scored ? lane.speedup : null);
        same.draw(scored ? lane.same : null);
      },
    };
  }

  window.sparsed.tools.laneView = laneView;
})();
