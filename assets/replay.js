/* Plays a run that is over: a bar that hands the stage one earlier state after the other (app/replay.py). */
(() => {
  "use strict";

  const { el, setText, setAttribute, show, onThemeChange } = window.sparsed.tools;

  const UPDATE_EVERY_MS = 50;
  // A tab that was out of sight goes on where it was.
  const LONGEST_UPDATE_MS = 250;
  const AUTO_MS = 15_000;
  const TICKS = 500;
  const SAME = 0.02;
  const SPEEDS = ["auto", "0.5", "1", "2", "4"];
  const BUSY = ["loading", "preparing", "waiting", "running"];

  // ---- what app/stage.py computes while a run goes on --------------------------------------------------------------

  const rounded = (value, digits) => Number(value.toFixed(digits));
  const countOf = (steps) => (steps === 1 ? "1 step" : `${steps} steps`);

  function clock(seconds) {
    if (seconds < 9.995) return `${seconds.toFixed(2)} s`;
    if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
    const whole = Math.round(seconds);
    const minutes = Math.floor(whole / 60);
    if (minutes < 60) return `${minutes} min ${String(whole % 60).padStart(2, "0")} s`;
    return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
  }

  // Both lanes over the steps that both have done.
  function speedup(dense, sparse, steps) {
    const a = dense.clock[steps] / 1000;
    const b = sparse.clock[steps] / 1000;
    if (!steps || a <= 0 || b <= 0) return null;
    const ratio = a / b;
    const words = Math.abs(ratio - 1) < SAME ? "about the same speed" : ratio > 1 ? "faster" : "slower";
    const over = steps > 1 ? `first ${countOf(steps)}` : "first step";
    return {
      ratio: rounded(ratio, 4),
      text: `${(words === "slower" ? 1 / ratio : ratio).toFixed(2)}×`,
      words: `${words} so far`,
      detail: `${over}: ${clock(a)} with full attention, ${clock(b)} with SparseD`,
    };
  }

  // clock[k]: milliseconds after k steps. states[k]: the cells after k steps; what does not change is shared.
  function laneRecord(lane, cells) {
    const record = { lane, made: lane.ms.length, clock: [0], states: [Array(cells).fill(["", 0, null, 0])] };
    lane.changes.forEach((changes, index) => {
      const next = record.states[index].slice();
      for (const [cell, text, confidence, end] of changes) next[cell] = [text, next[cell][1] || index + 1, confidence, end];
      record.states.push(next);
      record.clock.push(record.clock[index] + lane.ms[index]);
    });
    return record;
  }

  // over: every lane is at its end.
  function laneSnapshot(record, step, state, over, since) {
    const { lane } = record;
    const cells = record.states[step];
    const spent = record.clock[step] / 1000;
    const done = lane.finished && step === record.made;
    const committed = cells.filter((cell) => cell[1]).length;
    const end = cells.findIndex((cell) => cell[3]);
    const answered = end < 0 ? committed : cells.slice(0, end + 1).filter((cell) => cell[1]).length;
    return {
      key: lane.key,
      label: lane.label,
      state: done ? "done" : state,
      phase: step ? lane.phases[step - 1] : "dense",
      phases: done ? lane.made : lane.ranges,
      step,
      total: lane.total,
      at_most: lane.at_most,
      progress: rounded(lane.at_most ? committed / cells.length : step / lane.total, 4),
      seconds: rounded(spent, 6),
      ms_per_step: step ? rounded((1000 * spent) / step, 1) : null,
      tokens_per_second: spent > 0 ? rounded(answered / spent, 3) : null,
      backend: lane.backend,
      parallel: lane.parallel,
      cells,
      text: done ? lane.text : null,
      right: done ? lane.right : null,
      verdict: done ? lane.verdict : null,
      same: over ? lane.same : null,
      since,
    };
  }

  // The stage after steps[i] steps of lane i. since[i]: what lane i committed after that step is just committed.
  function snapshot(value, records, steps, since) {
    const over = records.every((record, i) => steps[i] === record.made);
    const state = over ? value.state : "running";
    const lanes = records.map((record, i) => laneSnapshot(record, steps[i], state, over, since[i]));
    const index = Object.fromEntries(records.map((record, i) => [record.lane.key, i]));
    let score = over ? value.speedup : null;
    // Before it is sparse the second lane does what the first does: a factor would be noise.
    if (!over && "dense" in index && "sparse" in index && records[index.sparse].lane.phases.slice(0, steps[index.sparse]).includes("sparse")) {
      score = speedup(records[index.dense], records[index.sparse], Math.min(steps[index.dense], steps[index.sparse]));
    }
    return {
      run: value.run,
      state,
      message: over ? value.message : "",
      question: value.question,
      notes: value.notes,
      mode: value.mode,
      speedup: score,
      agreement: over ? value.agreement : null,
      gold: over ? value.gold : null,
      lanes,
      steps: [],
    };
  }

  // ---- the two ways to play ----------------------------------------------------------------------------------------

  // How many entries of a growing list, the first one left out, are at most `time`.
  function passed(clockList, time) {
    let low = 0;
    let high = clockList.length - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (clockList[middle] <= time) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  // Every lane at the same step; a step lasts as long as in the slower lane.
  function inStep(records) {
    const most = Math.max(...records.map((record) => record.made));
    const ends = [0];
    for (let step = 0; step < most; step += 1) {
      ends.push(ends[step] + Math.max(0.01, ...records.map((record) => record.lane.ms[step] ?? 0)));
    }
    const spent = (step) => Math.max(...records.map((record) => record.clock[Math.min(step, record.made)]));
    const leading = records.find((record) => record.lane.key === "sparse") || records[0];
    return {
      name: "Step",
      duration: ends[most],
      most,
      steps: (time) => records.map((record) => Math.min(passed(ends, time), record.made)),
      value: (time) => passed(ends, time),
      time: (place) => ends[place],
      shown: (time) => `step ${passed(ends, time)} of ${most} · ${clock(spent(passed(ends, time)) / 1000)}`,
      said(time) {
        const step = passed(ends, time);
        return `step ${step} of ${most}: ${step ? leading.lane.phases[Math.min(step, leading.made) - 1] : "not begun"}`;
      },
    };
  }

  // Each lane by its own clock.
  function asItHappened(records) {
    const duration = Math.max(...records.map((record) => record.clock[record.made]));
    const steps = (time) => records.map((record) => passed(record.clock, time));
    const of = `of ${clock(duration / 1000)}`;
    return {
      name: "Time",
      duration,
      most: TICKS,
      steps,
      value: (time) => (duration ? Math.round((TICKS * time) / duration) : TICKS),
      time: (place) => (place === TICKS ? duration : (duration * place) / TICKS),
      shown: (time) => `${clock(time / 1000)} ${of}`,
      said(time) {
        const at = steps(time).map((step, i) => `${records[i].lane.label} at step ${step} of ${records[i].lane.total}`);
        return `${clock(time / 1000)} ${of}: ${at.join(", ")}`;
      },
    };
  }

  // ---- the bar -----------------------------------------------------------------------------------------------------

  let mounted = 0;

  function mountReplay(root) {
    const group = `sd-replay-way-${(mounted += 1)}`;
    const recorded = el("p", { class: "sd-recorded", hidden: "" });
    const icon = el("span", { "aria-hidden": "true" });
    const word = el("span", {});
    const button = el("button", { class: "sd-play", type: "button" }, icon, word);
    const slider = el("input", { class: "sd-seek", type: "range", min: 0, step: 1 });
    const time = el("output", { class: "sd-replay-time", "aria-live": "off" });
    const way = (name, label, checked) => {
      const input = el("input", { type: "radio", name: group, value: name });
      input.checked = checked;
      return el("label", {}, input, label);
    };
    const ways = el("fieldset", { class: "sd-replay-way" }, el("legend", { class: "sd-hidden" }, "The lanes"),
      way("step", "in step", true), way("clock", "as it happened", false));
    const speed = el("select", {}, ...SPEEDS.map((name) => el("option", { value: name }, name === "auto" ? "auto" : `${name}×`)));
    const pace = el("label", { class: "sd-replay-speed" }, "Speed", speed);
    const hint = el("p", { class: "sd-replay-hint" });
    const bar = el("section", { class: "sd-replay", "aria-label": "Replay", hidden: "" },
      recorded, el("div", { class: "sd-replay-row" }, button, slider, time), el("div", { class: "sd-replay-options" }, ways, pace, hint));
    root.replaceChildren(bar);

    let value = null;
    let records = [];
    let timelines = {};
    let timeline = null;
    let now = 0;
    let timer = null;
    let last = 0;
    let shown = [];
    let sequence = 0;
    // The visitor's own choice of the way to play stays from run to run.
    let chosen = false;
    // The last picture of the live run that is over; is the value that of a run before the one that is live now?
    let live = null;
    let stale = false;

    const factor = () => (speed.value === "auto" ? Math.max(1, timeline.duration / AUTO_MS) : Number(speed.value));
    const badge = () => {
      if (!value.recorded) return "";
      return ["Recorded", value.recorded.machine, value.recorded.date, value.recorded.model].filter(Boolean).join(" · ");
    };

    // Is this the run that the page has just seen?
    function ofLive() {
      if (!live || value.recorded || live.question !== value.question) return false;
      return records.every((record) => live.lanes.some((lane) => lane.key === record.lane.key && lane.step === record.made));
    }

    function drawBar() {
      const playing = timer !== null;
      setText(icon, playing ? "❚❚" : "▶");
      setText(word, playing ? "Pause" : "Play");
      setAttribute(bar, "data-playing", playing);
      setAttribute(slider, "max", timeline.most);
      setAttribute(slider, "aria-label", timeline.name);
      const place = String(timeline.value(now));
      if (slider.value !== place) slider.value = place;
      setAttribute(slider, "aria-valuetext", timeline.said(now));
      setText(time, timeline.shown(now));
      setText(speed.options[0], timeline.duration > AUTO_MS ? `auto (${factor().toFixed(1)}×)` : "auto (1×)");
      setText(hint, ways.querySelector(":checked").value === "step"
        ? `${records.length > 2 ? "All" : "Both"} lanes show the same step.`
        : value.mode && value.mode.name === "together"
          ? "Each lane starts at zero and runs by its own clock; live they ran at the same time."
          : "Each lane starts at zero and runs by its own clock; live they took turns.");
    }

    function drawStage(forced) {
      const steps = timeline.steps(now);
      if (!forced && String(steps) === String(shown)) return;
      // While it plays, a picture may leave steps out: what they committed is new as well.
      const since = steps.map((step, i) => (timer !== null && shown[i] < step ? Math.min(shown[i], step - 1) : step - 1));
      shown = steps;
      const over = records.every((record, i) => steps[i] === record.made);
      const left = ofLive() ? live : null;
      const picture = over && left ? left : snapshot(value, records, steps, since);
      sequence += 1;
      const detail = { ...picture, run: left ? left.run : value.run, steps: [], recorded: badge(), replay: true, sequence };
      document.dispatchEvent(new CustomEvent("sparsed:show", { detail }));
    }

    function draw(forced = false) {
      drawBar();
      drawStage(forced);
    }

    function pause() {
      if (timer === null) return;
      clearTimeout(timer);
      timer = null;
      drawBar();
    }

    function play() {
      if (now >= timeline.duration) now = 0;
      last = performance.now();
      timer = setTimeout(advance, UPDATE_EVERY_MS);
      draw();
    }

    function advance() {
      const moment = performance.now();
      now = Math.min(timeline.duration, now + Math.min(moment - last, LONGEST_UPDATE_MS) * factor());
      last = moment;
      timer = now < timeline.duration ? setTimeout(advance, UPDATE_EVERY_MS) : null;
      draw();
    }

    const toggle = () => (timer === null ? play() : pause());

    button.addEventListener("click", toggle);
    slider.addEventListener("pointerdown", pause);
    slider.addEventListener("input", () => {
      // Before the bar is drawn again, which puts the thumb to where the playing was.
      now = timeline.time(Number(slider.value));
      pause();
      draw();
    });
    bar.addEventListener("keydown", (event) => {
      if (event.key !== " " || !(event.target === slider || event.target.type === "radio")) return;
      event.preventDefault();
      toggle();
    });
    speed.addEventListener("change", drawBar);
    ways.addEventListener("change", () => {
      chosen = true;
      const steps = timeline.steps(now);
      const over = now >= timeline.duration;
      timeline = timelines[ways.querySelector(":checked").value];
      // Where the lane that was furthest on has just done its last step.
      const spent = records.map((record, i) => record.clock[steps[i]]);
      now = over ? timeline.duration : timeline.name === "Step" ? timeline.time(Math.max(...steps)) : Math.min(timeline.duration, Math.max(...spent));
      draw();
    });

    document.addEventListener("sparsed:stage", (event) => {
      const picture = event.detail;
      if (picture.replay) return;
      const begun = picture.lanes.some((lane) => lane.step);
      if (BUSY.includes(picture.state)) {
        live = null;
        stale = true;
      } else if (begun) {
        live = picture;
      } else {
        // Nothing came of it: the run before can be played again.
        stale = false;
      }
      // Whatever the page itself has to say stays readable.
      if (picture.state !== "idle") pause();
      show(bar, Boolean(value) && !stale);
    });

    return (given) => {
      pause();
      value = given;
      stale = false;
      show(bar, Boolean(value));
      if (!value) return;
      records = value.lanes.map((lane) => laneRecord(lane, value.cells));
      timelines = { step: inStep(records), clock: asItHappened(records) };
      if (!chosen) for (const input of ways.querySelectorAll("input")) input.checked = input.value === (value.way || "step");
      timeline = timelines[ways.querySelector(":checked").value];
      setText(recorded, badge());
      show(recorded, Boolean(value.recorded));
      shown = [];
      const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
      const begin = value.autoplay && !still;
      now = begin ? 0 : timeline.duration;
      drawBar();
      // The stage may be set up after this view.
      setTimeout(() => {
        if (value !== given || stale) return;
        draw(true);
        if (begin) play();
      });
    };
  }

  window.sparsed.define("replay", mountReplay);

  // ---- the heading of a replay that is a file of its own -----------------------------------------------------------

  function mountRecord(root) {
    const title = el("h1", { class: "sd-title" });
    const facts = el("ul", { class: "sd-chips", "aria-label": "Where and when" });
    const toggle = el("button", { class: "sd-theme", type: "button", "aria-label": "Switch between the light and the dark design" });
    root.replaceChildren(el("header", { class: "sd-header" }, el("div", { class: "sd-brand" }, el("div", {}, title, facts)), toggle));
    const wish = window.matchMedia("(prefers-color-scheme: dark)");
    const dark = (on) => document.body.classList.toggle("dark", on);
    const label = () => setText(toggle, document.body.classList.contains("dark") ? "Light" : "Dark");
    const follow = () => dark(wish.matches);
    follow();
    label();
    onThemeChange(label);
    wish.addEventListener("change", follow);
    toggle.addEventListener("click", () => {
      wish.removeEventListener("change", follow);
      dark(!document.body.classList.contains("dark"));
    });
    return (value) => {
      setText(title, value.title);
      facts.replaceChildren(...value.facts.map((fact) => el("li", {}, fact)));
    };
  }

  window.sparsed.define("record", mountRecord);
})();
