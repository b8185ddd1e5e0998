/* Draws what the server sends as JSON. Text from a visitor or a model is only ever set as textContent. */
(() => {
  "use strict";

  const PLOTLY = document.currentScript.dataset.plotly;
  const BUTTONS = JSON.parse(document.currentScript.dataset.buttons ?? "{}");
  const THEME_KEY = "sparsed-theme";
  const DRAW_EVERY_MS = 250;

  // ---- small helpers ---------------------------------------------------------------------------------------------

  function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined) node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }

  // Touching the document only where something changed keeps eight updates a second cheap.
  function setText(node, text) {
    const next = text === null || text === undefined ? "" : String(text);
    if (node.textContent !== next) node.textContent = next;
  }

  function setAttribute(node, name, value) {
    if (value === null || value === undefined) {
      if (node.hasAttribute(name)) node.removeAttribute(name);
    } else if (node.getAttribute(name) !== String(value)) {
      node.setAttribute(name, value);
    }
  }

  function show(node, visible) {
    if (node.hidden === visible) node.hidden = !visible;
  }

  function setList(list, sentences) {
    const wanted = sentences || [];
    if (list.dataset.shown === JSON.stringify(wanted)) return;
    list.dataset.shown = JSON.stringify(wanted);
    list.replaceChildren(...wanted.map((sentence) => el("li", {}, sentence)));
    show(list, wanted.length > 0);
  }

  const number = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en-US"));

  function seconds(value) {
    if (value < 10) return `${value.toFixed(2)} s`;
    if (value < 60) return `${value.toFixed(1)} s`;
    const whole = Math.round(value);
    return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  }

  function milliseconds(value) {
    if (value >= 10_000) return seconds(value / 1000);
    return `${value < 100 ? value.toFixed(1) : Math.round(value)} ms`;
  }

  // ---- header ----------------------------------------------------------------------------------------------------

  function mountHeader(root) {
    const title = el("h1", { class: "sd-title" });
    const tagline = el("p", { class: "sd-tagline" });
    const chips = el("ul", { class: "sd-chips", "aria-label": "Model and device" });
    const toggle = el("button", { class: "sd-theme", type: "button" });
    const mark = el("span", { class: "sd-mark", "aria-hidden": "true" });
    for (const kept of "1000110010101001") mark.append(el("i", { "data-kept": kept }));
    root.replaceChildren(
      el("header", { class: "sd-header" },
        el("div", { class: "sd-brand" }, mark, el("div", {}, title, tagline)),
        el("div", { class: "sd-side" }, chips, toggle)),
    );
    const dark = () => document.body.classList.contains("dark");
    const label = () => setText(toggle, dark() ? "Light" : "Dark");
    const remembered = localStorage.getItem(THEME_KEY);
    if (remembered && !new URLSearchParams(location.search).has("__theme")) {
      document.body.classList.toggle("dark", remembered === "dark");
    }
    toggle.addEventListener("click", () => {
      document.body.classList.toggle("dark", !dark());
      localStorage.setItem(THEME_KEY, dark() ? "dark" : "light");
    });
    onThemeChange(label);
    label();
    toggle.setAttribute("aria-label", "Switch between the light and the dark design");
    return (value) => {
      if (!value) return;
      setText(title, value.title);
      setText(tagline, value.tagline);
      chips.replaceChildren(...value.chips.map((chip) => el("li", {}, chip)));
      chips.classList.toggle("sd-busy", Boolean(value.busy));
    };
  }

  const themeListeners = [];
  function onThemeChange(listener) {
    if (!themeListeners.length) {
      let before = null;
      new MutationObserver(() => {
        const now = document.body.classList.contains("dark");
        if (now === before) return;
        before = now;
        for (const each of themeListeners) each();
      }).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    }
    themeListeners.push(listener);
  }

  // ---- prompt ----------------------------------------------------------------------------------------------------

  function mountPrompt(root) {
    const question = el("p", { class: "sd-question" });
    const facts = el("p", { class: "sd-facts" });
    const problem = el("p", { class: "sd-problem", role: "alert", hidden: "" });
    const notes = el("ul", { class: "sd-notes", hidden: "" });
    const text = el("pre", { class: "sd-prompt-text", tabindex: "0", "aria-label": "The whole prompt" });
    const summary = el("summary", {}, "Read the prompt");
    const details = el("details", { class: "sd-preview" }, summary, text);
    root.replaceChildren(
      el("section", { class: "sd-prompt", "aria-label": "Prompt" }, question, facts, details, problem, notes),
    );
    let current = "";
    // A prompt of 64k tokens is laid out when somebody opens it, not before.
    const fill = () => details.open && setText(text, current);
    details.addEventListener("toggle", fill);
    return (value) => {
      if (!value) return;
      const ready = value.state === "ready";
      show(question, ready ? Boolean(value.question) : value.state === "loading");
      show(facts, ready || value.state === "empty" || Boolean(value.offer));
      show(details, ready);
      const trouble = value.problem || value.refused || "";
      setText(problem, trouble);
      show(problem, Boolean(trouble));
      setList(notes, value.notes);
      if (value.state === "loading") setText(question, value.message || "The model is loading …");
      if (value.state === "empty") setText(facts, "Type or paste a prompt above.");
      if (value.offer) setText(facts, value.offer);
      if (!ready) return;
      setText(question, value.question);
      const parts = [`${number(value.tokens)} prompt tokens`];
      if (value.gold) parts.push("the expected answer is known, and hidden until the end");
      if (value.estimate && !value.refused) parts.push(value.estimate, ...(value.ends ? [value.ends] : []));
      setText(facts, parts.join(" · "));
      current = value.text;
      fill();
    };
  }

  // ---- stage: the lanes and the score -----------------------------------------------------------------------------

  // A replay in a file of its own has nobody to tell.
  function mountStage(root, trigger = () => {}) {
    const ratio = el("span", { class: "sd-ratio" });
    const words = el("span", { class: "sd-words" });
    const detail = el("span", { class: "sd-detail" });
    const same = el("span", { class: "sd-same" });
    const sameWords = el("span", { class: "sd-words" });
    const sameDetail = el("span", { class: "sd-detail" });
    const speed = el("div", { class: "sd-score sd-score-speed" }, el("p", {}, ratio, words), detail);
    const agreement = el("div", { class: "sd-score sd-score-same" }, el("p", {}, same, sameWords), sameDetail);
    const message = el("p", { class: "sd-message", role: "status", "aria-live": "polite" });
    const spoken = el("p", { class: "sd-hidden", role: "status", "aria-live": "polite" });
    const notes = el("ul", { class: "sd-notes", hidden: "" });
    const mode = el("p", { class: "sd-mode", hidden: "" });
    const recorded = el("p", { class: "sd-recorded", hidden: "" });
    const about = el("b", {});
    const aboutLine = el("p", { class: "sd-about", hidden: "" }, "These lanes answer: ", about);
    const lanes = el("div", { class: "sd-lanes" });
    const gold = el("span", {});
    const goldLine = el("p", { class: "sd-gold", hidden: "" }, el("b", {}, "Expected answer "), gold);
    root.replaceChildren(
      el("section", { class: "sd-stage", "aria-label": "Race" },
        el("div", { class: "sd-scores" }, speed, agreement, message), spoken, recorded, notes, aboutLine, mode, lanes, goldLine, legend()),
    );
    const views = new Map();
    let run = null;
    let phase = "";
    const told = {}; // the run that was told of last, by what was told
    function tell(what, of) {
      if (told[what] === of) return;
      told[what] = of;
      trigger(what);
    }
    // A snapshot has `replay` where it shows an earlier state of a run that is over (replay.js), `recorded` where the
    // run was not made here and now.
    function draw(value) {
      if (!value) return;
      if (value.run !== run) {
        run = value.run;
        for (const view of views.values()) view.reset();
      }
      setAttribute(root.firstElementChild, "data-state", value.state);
      setAttribute(root.firstElementChild, "data-run", value.run);
      setAttribute(root.firstElementChild, "data-sequence", value.sequence);
      const score = value.speedup;
      show(speed, Boolean(score));
      if (score) {
        setText(ratio, score.text);
        setText(words, score.words);
        setText(detail, score.detail);
        setAttribute(speed, "data-sense", score.words.startsWith("faster") ? "faster" : score.words.startsWith("slower") ? "slower" : "same");
      }
      show(agreement, Boolean(value.agreement));
      if (value.agreement) {
        setText(same, value.agreement.text);
        setText(sameWords, value.agreement.words);
        setText(sameDetail, value.agreement.detail);
      }
      setText(message, value.message);
      show(message, Boolean(value.message));
      setAttribute(message, "data-state", value.state);
      setText(recorded, value.recorded);
      show(recorded, Boolean(value.recorded));
      setList(notes, value.notes);
      setText(about, value.question);
      show(aboutLine, Boolean(value.question));
      show(mode, Boolean(value.mode));
      setText(mode, value.mode ? value.mode.text : "");
      setAttribute(mode, "data-mode", value.mode ? value.mode.name : null);
      setAttribute(lanes, "data-lanes", value.lanes.length);
      for (const [key, view] of views) show(view.root, value.lanes.some((lane) => lane.key === key));
      for (const lane of value.lanes) {
        if (!views.has(lane.key)) {
          const view = laneView(lane.key);
          views.set(lane.key, view);
          lanes.append(view.root);
        }
        const others = value.lanes.filter((other) => other.key !== lane.key);
        views.get(lane.key).draw(lane, value.state, value.agreement ? others[0] : null);
      }
      setText(gold, value.gold);
      show(goldLine, Boolean(value.gold));
      // Said to screen readers at the turning points only; the numbers change too often to be read out.
      const sparse = value.lanes.find((lane) => lane.key === "sparse");
      if (value.state === "running" && !value.replay && !value.recorded) {
        tell("play", value.run);
        if (sparse && sparse.phase !== "dense") tell("select", value.run);
      }
      if (value.loaded) trigger("load");
      const now = value.state === "running" && sparse ? sparse.phase : value.state;
      if (now !== phase && !value.replay) {
        phase = now;
        const all = value.lanes.length > 2 ? "All" : "Both";
        if (now === "dense") setText(spoken, `The race has begun. ${all} lanes use full attention.`);
        if (now === "sparse") setText(spoken, "SparseD has selected its blocks and is sparse now.");
        if (now === "done" && score) {
          const others = value.lanes.filter((lane) => lane.same).map((lane) => ` ${lane.label}: ${lane.same.text} ${lane.same.words}.`);
          setText(spoken, `${all} lanes are done. SparseD: ${score.text} ${score.words}.${others.join("")}`);
        }
      }
      document.dispatchEvent(new CustomEvent("sparsed:stage", { detail: value }));
    }
    document.addEventListener("sparsed:show", (event) => draw(event.detail));
    return draw;
  }

  function legend() {
    const cell = (state, text) => el("span", { class: "sd-cell", "data-state": state, "aria-hidden": "true" }, text);
    const entry = (state, text, meaning) => el("li", {}, cell(state, text), meaning);
    return el("ul", { class: "sd-legend", "aria-label": "How to read the canvas" },
      entry("masked", "", "masked"),
      entry("fresh", "word", "just committed"),
      entry("settled", "word", "settled"),
      entry("end", "∎", "after the end"),
      (() => { const item = entry("settled", "word", "differs between the lanes"); item.firstElementChild.dataset.differs = ""; return item; })());
  }

  // Characters that change the direction of what follows them. A cell that holds one is isolated; all others are not,
  // so that a sentence in Hebrew or Arabic reads as it should.
  const TURNING = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/;
  const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]|[\ud802\ud803\ud83a\ud83b]/;

  // A token's text among words of ours, which it must not turn around.
  function quoted(text) {
    if (!TURNING.test(text) && !RIGHT_TO_LEFT.test(text)) return text;
    return `\u2068${text.replace(new RegExp(TURNING, "g"), "")}\u2069`;
  }

  function laneView(key) {
    const heading = `sd-lane-${key}-title`;
    const backend = el("span", { class: "sd-backend" });
    const phases = el("ol", { class: "sd-phases", "aria-label": "Phases" });
    const step = el("dd", {});
    const elapsed = el("dd", {});
    const pace = el("dd", {});
    const rate = el("dd", {});
    const fill = el("span", {});
    const bar = el("div", { class: "sd-progress", role: "progressbar", "aria-labelledby": heading, "aria-valuemin": 0, "aria-valuemax": 100 }, fill);
    const canvas = el("div", { class: "sd-canvas", role: "listbox", "aria-orientation": "horizontal", "aria-labelledby": heading, tabindex: "0" });
    const tip = el("p", { class: "sd-tip", hidden: "" });
    const verdict = el("p", { class: "sd-verdict" });
    const same = el("b", {});
    const sameWords = el("span", {});
    const sameLine = el("p", { class: "sd-lane-same", hidden: "" }, same, " ", sameWords);
    const title = el("h2", { id: heading });
    const figure = (name, node) => el("div", {}, el("dt", {}, name), node);
    const root = el("article", { class: "sd-lane", "data-lane": key, "aria-labelledby": heading },
      el("div", { class: "sd-lane-head" }, title, backend),
      phases,
      el("dl", { class: "sd-figures" }, figure("step", step), figure("time", elapsed), figure("per step", pace), figure("speed", rate)),
      bar, el("div", { class: "sd-canvas-box" }, canvas, tip), verdict, sameLine);
    let cells = [];
    let drawn = 0;
    let data = [];
    let active = -1;

    function describe(index) {
      const [text, at, confidence, end] = data[index];
      if (!at) return `Token ${index + 1}: masked`;
      const what = end ? "end of the answer" : `“${quoted(text)}”`;
      const sure = confidence === null ? "" : `, confidence ${confidence.toFixed(2)}`;
      return `Token ${index + 1}: ${what}, committed in step ${at}${sure}`;
    }

    // The name of a cell whose text says nothing; null where it does.
    function named([text, at, , isEnd], later) {
      if (!at) return "masked";
      if (isEnd) return later ? "after the end" : "end of the answer";
      if (text.trim() || text.includes("\n")) return null;
      return text ? "space" : "part of the character before";
    }

    function point(index) {
      if (active >= 0 && cells[active]) cells[active].removeAttribute("aria-selected");
      active = index;
      const cell = cells[index];
      if (!cell) {
        tip.hidden = true;
        canvas.removeAttribute("aria-activedescendant");
        return;
      }
      cell.setAttribute("aria-selected", "true");
      canvas.setAttribute("aria-activedescendant", cell.id);
      const said = describe(index);
      cell.setAttribute("aria-label", said);
      tip.textContent = said;
      tip.hidden = false;
      const room = canvas.parentElement.clientWidth - tip.offsetWidth;
      tip.style.left = `${Math.max(0, Math.min(room, cell.offsetLeft))}px`;
      tip.style.top = `${cell.offsetTop + cell.offsetHeight + 4 - canvas.scrollTop}px`;
    }

    canvas.addEventListener("pointerover", (event) => {
      const index = cells.indexOf(event.target.closest(".sd-cell"));
      if (index >= 0) point(index);
    });
    canvas.addEventListener("pointerleave", () => point(-1));
    canvas.addEventListener("blur", () => point(-1));
    canvas.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: active + 1, ArrowDown: active + 1, ArrowLeft: active - 1, ArrowUp: active - 1, Home: 0, End: cells.length - 1 };
      if (event.key === "Escape") point(-1);
      if (!(event.key in moves)) return;
      event.preventDefault();
      point(Math.max(0, Math.min(cells.length - 1, moves[event.key])));
    });

    function drawCells(lane, state, other) {
      data = lane.cells;
      if (cells.length !== data.length) {
        cells = data.map((_, index) => el("span", { class: "sd-cell", role: "option", id: `sd-${key}-${index}` }));
        canvas.replaceChildren(...cells);
      }
      const end = data.findIndex((cell) => cell[3] === 1);
      const running = state === "running";
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
        setAttribute(node, "aria-label", named(data[i], i > end));
        setAttribute(node, "data-turns", text && TURNING.test(text) ? "" : null);
        setAttribute(node, "data-state", kind);
        setAttribute(node, "data-step", at || null);
        setAttribute(node, "data-seam", lane.parallel && i && i % lane.parallel === 0 ? "" : null);
        const theirs = other && other.cells[i];
        const longer = other ? Math.max(end, other.cells.findIndex((cell) => cell[3] === 1)) : -1;
        // Two end tokens are alike, whatever they are called.
        const differs = theirs && (longer < 0 || i <= longer) && (theirs[3] !== isEnd || (!isEnd && theirs[0] !== text));
        setAttribute(node, "data-differs", differs ? "" : null);
      }
      if (active >= 0) point(active);
    }

    function drawPhases(lane) {
      const shown = JSON.stringify([lane.phases, lane.phase, lane.step > 0]);
      if (phases.dataset.shown === shown) return;
      phases.dataset.shown = shown;
      phases.replaceChildren(...lane.phases.map(([name, first, last]) => {
        const range = last === null ? `from step ${first}` : first === last ? `step ${first}` : `steps ${first}–${last}`;
        const current = lane.step > 0 && name === lane.phase;
        return el("li", { "data-phase": name, "aria-current": current ? "step" : null }, el("b", {}, name), ` ${range}`);
      }));
    }

    return {
      root,
      reset() { drawn = 0; point(-1); },
      draw(lane, state, other) {
        setAttribute(root, "data-state", lane.state);
        setText(title, lane.label);
        setText(backend, lane.backend);
        drawPhases(lane);
        setText(step, `${lane.step || "–"} of ${lane.at_most ? "≤ " : ""}${lane.total}`);
        setText(elapsed, lane.step ? seconds(lane.seconds) : "–");
        setText(pace, lane.ms_per_step === null ? "–" : milliseconds(lane.ms_per_step));
        setText(rate, lane.tokens_per_second === null ? "–" : `${lane.tokens_per_second.toFixed(lane.tokens_per_second < 1 ? 2 : 1)} tokens/s`);
        setAttribute(bar, "aria-valuenow", Math.round(100 * lane.progress));
        fill.style.transform = `scaleX(${lane.progress})`;
        drawCells(lane, lane.state, other);
        drawn = lane.step;
        setText(verdict, lane.verdict ? `${lane.right ? "✓" : "✗"} ${lane.verdict}` : "");
        setAttribute(verdict, "data-right", lane.verdict ? String(lane.right) : null);
        // Only of a lane whose agreement is not the headline's.
        show(sameLine, Boolean(lane.same));
        if (lane.same) {
          setText(same, lane.same.text);
          setText(sameWords, lane.same.words);
          setAttribute(sameLine, "title", lane.same.detail);
        }
      },
    };
  }

  // ---- charts ----------------------------------------------------------------------------------------------------

  let plotlyLoading = null;
  let looked = null; // the layer and head of the last detailed view
  function loadPlotly() {
    plotlyLoading ??= new Promise((resolve, reject) => {
      const script = el("script", { src: PLOTLY });
      script.addEventListener("load", () => resolve(window.Plotly));
      script.addEventListener("error", () => reject(new Error("plotly.js could not be loaded")));
      document.head.append(script);
    });
    return plotlyLoading;
  }

  // Figures name colours as CSS variables, so that one figure serves the light and the dark design.
  function resolveColours(value, styles) {
    if (typeof value === "string") {
      const match = /^var\((--[\w-]+)\)$/.exec(value);
      return match ? styles.getPropertyValue(match[1]).trim() : value;
    }
    if (Array.isArray(value)) {
      // Long rows of numbers hold no colours; a colour scale's entries are pairs of a number and a colour.
      return value.length > 2 && typeof value[0] === "number" ? value : value.map((item) => resolveColours(item, styles));
    }
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolveColours(item, styles)]));
    }
    return value;
  }

  function mountChart(root, trigger) {
    const plot = el("div", { class: "sd-plot", role: "img" });
    root.replaceChildren(plot);
    // On a phone some scroll inside themselves, which must not need a pointer.
    root.tabIndex = window.matchMedia("(max-width: 760px)").matches ? 0 : -1;
    let figure = null;
    let timer = null;
    let last = 0;
    let hidden = false; // a figure laid out without a size would have its titles one over the other
    async function draw() {
      timer = null;
      last = performance.now();
      hidden = !root.offsetWidth;
      if (hidden) return;
      const Plotly = await loadPlotly();
      if (!figure) return;
      const styles = getComputedStyle(root);
      const font = { family: styles.fontFamily };
      const { data, layout } = resolveColours(figure, styles);
      await Plotly.react(plot, data, { ...layout, font: { ...font, ...layout.font } }, { displayModeBar: false, responsive: true });
      // Plotly's own box loses its height when it is drawn anew and then made wider; what follows would slide below it.
      if (layout.height) plot.style.minHeight = `${layout.height}px`;
      if (!plot.dataset.drawn && trigger) {
        // What was clicked, for the charts whose parts can be chosen.
        plot.on("plotly_click", (event) => {
          const point = event.points[0];
          trigger("click", { meta: point.data.meta ?? null, x: point.x, y: point.y });
        });
      }
      plot.dataset.drawn = String(Number(plot.dataset.drawn || 0) + 1);
      const { layer, head, heads } = layout.meta || {};
      if (head !== undefined) {
        looked = { layer, head };
        document.dispatchEvent(new Event("sparsed:head"));
      }
      if (heads !== undefined) frame();
    }
    // Among the heads of a layer, a frame around the one that is looked at in detail.
    function frame() {
      const { layer, heads } = (figure && figure.layout.meta) || {};
      if (heads === undefined || !window.Plotly || !plot.dataset.drawn) return;
      if (!root.offsetWidth) {
        hidden = true;
        return;
      }
      const shapes = resolveColours(figure.layout.shapes || [], getComputedStyle(root));
      if (looked && looked.layer === layer && looked.head < heads) {
        const suffix = looked.head ? looked.head + 1 : "";
        const [x0, x1] = figure.layout[`xaxis${suffix}`].range;
        const [y0, y1] = figure.layout[`yaxis${suffix}`].range;
        shapes.push({
          type: "rect", name: "looked at", xref: `x${suffix}`, yref: `y${suffix}`, x0, x1, y0, y1,
          line: { color: getComputedStyle(root).getPropertyValue("--sd-ink").trim(), width: 3 },
        });
      }
      window.Plotly.relayout(plot, { shapes });
    }
    document.addEventListener("sparsed:head", frame);
    function soon() {
      if (timer === null) timer = setTimeout(draw, Math.max(0, last + DRAW_EVERY_MS - performance.now()));
    }
    onThemeChange(() => figure && soon());
    new ResizeObserver(() => {
      if (root.offsetWidth && hidden) return void soon();
      if (root.offsetWidth && window.Plotly && plot.classList.contains("js-plotly-plot")) window.Plotly.Plots.resize(plot);
    }).observe(root);
    return (value) => {
      if (!value || !value.figure) return;
      figure = value.figure;
      setAttribute(plot, "aria-label", value.label);
      setAttribute(plot, "data-empty", figure.data.length ? null : "");
      soon();
    };
  }

  // What a button does, said when it is pointed at or focused: gradio's buttons have no room for it.
  for (const kind of ["pointerover", "focusin"]) {
    document.addEventListener(kind, (event) => {
      const button = event.target instanceof Element && event.target.closest("button");
      const said = button && BUTTONS[(button.id ? button : button.closest("[id]"))?.id];
      if (said && button.title !== said) button.title = said;
    });
  }

  // ---- gradio's side ---------------------------------------------------------------------------------------------

  const kinds = { header: mountHeader, prompt: mountPrompt, stage: mountStage, chart: mountChart };

  window.sparsed = {
    // For the scripts beside this one: their views register themselves under a name.
    tools: { el, setText, setAttribute, show, number, seconds, onThemeChange },
    define(kind, mount) {
      kinds[kind] = mount;
    },
    mount(kind, element, props, watch, trigger) {
      const draw = kinds[kind](element.querySelector(".sd-view"), trigger);
      // The value is JSON text: objects would be copied and compared by gradio again and again.
      const update = () => draw(props.value ? JSON.parse(props.value) : null);
      update();
      watch("value", update);
    },
    // The last line of the bundle calls it: every view is defined by then.
    start() {
      this.started = true;
      for (const go of window.sparsedWaiting || []) go();
    },
  };
})();
