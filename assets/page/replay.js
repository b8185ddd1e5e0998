/* Plays a run that is over: a bar that hands the stage one earlier state after the other (playback.js). */
(() => {
  "use strict";

  const { el, setText, setAttribute, show, playback } = window.sparsed.tools;

  const UPDATE_EVERY_MS = 50;
  // A tab that was out of sight goes on where it was.
  const LONGEST_UPDATE_MS = 250;
  const AUTO_MS = 15_000;
  const SPEEDS = ["auto", "0.5", "1", "2", "4"];
  const BUSY = ["loading", "preparing", "waiting", "running"];

  let mounted = 0;

  function mountReplay(root) {
    const group = `sd-replay-way-${(mounted += 1)}`;
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
    const pace = el("label", {}, "Speed", speed);
    const hint = el("p", { class: "sd-replay-hint" });
    const bar = el("section", { class: "sd-replay", "aria-label": "Replay", hidden: "" },
      el("div", { class: "sd-replay-row" }, button, slider, time), el("div", { class: "sd-replay-options" }, ways, pace, hint));
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
      const picture = over && left ? left : playback.snapshot(value, records, steps, since);
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

    // A step was pointed out elsewhere (cursor.js). While a run goes on there is nothing to go back to.
    document.addEventListener("sparsed:seek", (event) => {
      if (!value || stale) return;
      now = timeline.after(event.detail.lane, event.detail.step);
      pause();
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
      records = value.lanes.map((lane) => playback.laneRecord(lane, value.cells));
      timelines = { step: playback.inStep(records, value.headline), clock: playback.asItHappened(records) };
      if (!chosen) for (const input of ways.querySelectorAll("input")) input.checked = input.value === (value.way || "step");
      timeline = timelines[ways.querySelector(":checked").value];
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
})();
