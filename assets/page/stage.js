/* The race: how much faster, how much the same, its lanes (lane.js), and whatever is to be said of all of them. */
(() => {
  "use strict";

  const { el, setText, setAttribute, setList, show, laneView } = window.sparsed.tools;

  // A question of more characters takes two lines.
  const LONG = 60;
  const BUSY = ["loading", "preparing", "waiting", "running"];

  // A replay in a file of its own has nobody to tell.
  function mountStage(root, trigger = () => {}) {
    const score = (name, more = `${name}-score`) => {
      const number = el("span", { class: name });
      const words = el("span", { class: "sd-words" });
      const detail = el("span", { class: "sd-detail" });
      const box = el("div", { class: `sd-score ${more}`, hidden: "" }, el("p", {}, number, " ", words), detail);
      return { box, draw(value) {
        show(box, Boolean(value));
        if (!value) return;
        setText(number, value.text);
        setText(words, value.words);
        setText(detail, value.detail);
        setAttribute(detail, "title", value.detail);
        setAttribute(number, "data-unsteady", value.unsteady ? "" : null);
      } };
    };
    const speed = score("sd-ratio", "sd-score-speed");
    const agreement = score("sd-same");
    const answers = score("sd-right");
    const message = el("p", { class: "sd-message", role: "status", "aria-live": "polite" });
    const spoken = el("p", { class: "sd-hidden", role: "status", "aria-live": "polite" });
    const notes = el("ul", { class: "sd-notes", hidden: "" });
    const mode = el("p", { class: "sd-mode", hidden: "" });
    const recorded = el("p", { class: "sd-recorded", hidden: "" });
    const old = el("p", { class: "sd-last", hidden: "" });
    const about = el("b", {});
    const aboutLine = el("p", { class: "sd-about", hidden: "" }, el("span", { class: "sd-hidden" }, "These lanes answer: "), about);
    const lanes = el("div", { class: "sd-lanes" });
    const gold = el("span", {});
    const goldLine = el("p", { class: "sd-gold", hidden: "" }, el("b", {}, "Expected answer "), gold);
    const { list, later } = legend();
    const section = el("section", { class: "sd-stage", "aria-label": "Race" },
      el("div", { class: "sd-top" }, aboutLine, old, recorded),
      el("div", { class: "sd-scores" }, speed.box, agreement.box, answers.box, message), spoken, lanes,
      el("div", { class: "sd-under" }, goldLine, mode, list), notes);
    root.replaceChildren(section);
    const views = new Map();
    let run = null;
    let phase = "";
    let spokenOf = null; // the run of which it was said that it is sparse
    const told = {}; // the run that was told of last, by what was told
    function tell(what, of) {
      if (told[what] === of) return;
      told[what] = of;
      trigger(what);
    }
    let busy = false;
    let shown = null; // what the lanes show, as the controls would ask for it (the server's `fingerprint`); null: not known
    let asked = null; // what the controls ask for
    let source = null; // which record it is that is shown

    // Numbers that belong to another question than the one that is asked next are old.
    function drawOld() {
      const differs = asked !== null && shown !== null && asked !== shown;
      setAttribute(section, "data-old", differs ? "" : null);
      setText(old, section.dataset.state === "running" ? "this run" : "last run");
      show(old, differs && recorded.hidden && Boolean(about.textContent));
    }
    document.addEventListener("sparsed:asks", (event) => {
      asked = event.detail;
      // A record is as good as asked for until the visitor asks for something else; a page that settles is no visitor.
      if (source !== null && (shown === null || !navigator.userActivation?.hasBeenActive)) shown = asked;
      drawOld();
    });

    // Whoever starts a race, or opens one, sees it, wherever the page was scrolled to.
    function intoView() {
      const bottom = parseFloat(getComputedStyle(document.documentElement).scrollPaddingBottom) || 0;
      if (section.getBoundingClientRect().top >= 0 && lanes.getBoundingClientRect().bottom <= window.innerHeight - bottom) return;
      section.scrollIntoView({ block: "start" });
    }

    function follow(value) {
      const record = value.recorded ? JSON.stringify([value.run, value.recorded, value.question]) : null;
      if (record && record !== source) {
        shown = asked;
        if (source !== null || busy) intoView();
      } else if (value.asks) {
        shown = value.asks;
      }
      source = record ?? (value.asks ? null : source);
    }

    function watch(value) {
      if (value.replay) return;
      const now = BUSY.includes(value.state);
      if (now && !busy) intoView();
      busy = now;
    }

    // What headline and reference answer, in a few words; nothing where nobody knows what is right.
    function answersOf(large, first) {
      if (!large || large.right === null || !first) return null;
      const word = (right) => (right ? "right" : "wrong");
      const both = large.right === first.right;
      return {
        text: large.right ? "✓" : "✗",
        words: both ? `both ${word(large.right)}` : word(large.right),
        detail: `${large.label} ${word(large.right)}, ${first.label} ${word(first.right)}`,
      };
    }

    // A snapshot has `replay` where it shows an earlier state of a run that is over (replay.js), `recorded` where the
    // run was not made here and now.
    function draw(value) {
      if (!value) return;
      setText(message, value.message);
      show(message, Boolean(value.message));
      setAttribute(message, "data-state", value.state);
      setAttribute(section, "data-state", value.state);
      watch(value);
      // Before its first step a run has its message alone: what was there stays, and still does where none follows.
      const begun = value.state === "running" || value.replay || value.lanes.some((lane) => lane.step);
      if (views.size && !begun) {
        if (value.loaded) trigger("load");
        document.dispatchEvent(new CustomEvent("sparsed:stage", { detail: value }));
        return;
      }
      if (value.run !== run) {
        run = value.run;
        for (const view of views.values()) view.reset();
      }
      setAttribute(section, "data-run", value.run);
      setAttribute(section, "data-sequence", value.sequence);
      const score = value.speedup;
      speed.draw(score);
      if (score) setAttribute(speed.box, "data-sense", score.words.split(" ")[0]);
      agreement.draw(value.agreement);
      setText(recorded, value.recorded);
      setAttribute(recorded, "title", value.recorded);
      show(recorded, Boolean(value.recorded));
      setList(notes, value.notes);
      setText(about, value.question);
      setAttribute(about, "title", value.question);
      setAttribute(aboutLine, "data-long", (value.question ?? "").length > LONG ? "" : null);
      show(aboutLine, Boolean(value.question));
      show(mode, Boolean(value.mode));
      setText(mode, value.mode ? value.mode.text : "");
      setAttribute(mode, "data-mode", value.mode ? value.mode.name : null);
      if (lanes.dataset.lanes !== String(value.lanes.length)) {
        setAttribute(lanes, "data-lanes", value.lanes.length);
        // Another number of lanes is another picture, not a shift of this one.
        lanes.replaceChildren(...lanes.children);
      }
      for (const [key, view] of views) show(view.root, value.lanes.some((lane) => lane.key === key));
      const of = (key) => value.lanes.find((lane) => lane.key === key);
      const large = of(value.headline);
      answers.draw(value.agreement && !value.message ? answersOf(large, of(value.reference)) : null);
      setAttribute(answers.box, "data-right", large ? String(large.right) : null);
      const cached = value.lanes.some((lane) => lane.step_rows);
      value.lanes.forEach((lane, index) => {
        if (!views.has(lane.key)) {
          const view = laneView(lane.key);
          views.set(lane.key, view);
          lanes.insertBefore(view.root, lanes.children[index] ?? null);
        }
        // What it is compared with, once that may be told.
        const other = lane.same ? of(value.reference) : value.agreement && large;
        views.get(lane.key).draw(lane, other, lane !== large && lane.key !== value.reference, cached);
      });
      // Cells that are appended later are explained while there are any.
      show(later, value.lanes.some((lane) => lane.there < lane.cells.length && !lane.ended_early));
      setText(gold, value.gold);
      setAttribute(goldLine, "title", value.gold);
      show(goldLine, Boolean(value.gold));
      // Said to screen readers at the turning points only; the numbers change too often to be read out.
      if (value.state === "running" && !value.replay && !value.recorded) {
        tell("play", value.run);
        // A run may select again: then there is another pattern to look at.
        if (value.selected) tell("select", `${value.run} ${value.selected}`);
      }
      if (value.loaded) trigger("load");
      const now = value.state === "running" && large ? large.phase : value.state;
      // Of a run that selects again and again, the first time is said.
      const again = spokenOf === value.run && ["select", "sparse"].includes(now);
      if (now !== phase && !value.replay) {
        phase = now;
        if (now === "sparse") spokenOf = value.run;
        const all = value.lanes.length > 2 ? "All" : "Both";
        if (now === "dense") setText(spoken, `The race has begun. ${all} lanes use full attention.`);
        if (now === "sparse" && !again) setText(spoken, `${large.label} has selected its blocks and is sparse now.`);
        if (now === "done" && !score) setText(spoken, `${all} lanes are done.`);
        if (now === "done" && score) {
          const others = value.lanes.filter((lane) => lane.same && lane !== large).map((lane) => ` ${lane.label}: ${lane.same.text} ${lane.same.words}.`);
          setText(spoken, `${all} lanes are done. ${large.label}: ${score.text} ${score.words}.${others.join("")}`);
        }
      }
      follow(value);
      drawOld();
      document.dispatchEvent(new CustomEvent("sparsed:stage", { detail: value }));
    }
    document.addEventListener("sparsed:show", (event) => draw(event.detail));
    return draw;
  }

  function legend() {
    const cell = (state, text) => el("span", { class: "sd-cell", "data-state": state, "aria-hidden": "true" }, text);
    const entry = (state, text, meaning) => el("li", {}, cell(state, text), meaning);
    const differs = entry("settled", "word", "differs between the lanes");
    differs.firstElementChild.dataset.differs = "";
    const later = entry("masked", "", "not there yet");
    later.firstElementChild.dataset.later = "";
    const list = el("ul", { class: "sd-legend", "aria-label": "How to read the canvas" },
      entry("masked", "", "masked"),
      later,
      entry("fresh", "word", "just committed"),
      entry("settled", "word", "settled"),
      entry("end", "∎", "after the end"),
      differs);
    return { list, later };
  }

  window.sparsed.define("stage", mountStage);
})();
