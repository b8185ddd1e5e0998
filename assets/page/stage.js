/* The race: how much faster, how much the same, its lanes (lane.js), and whatever is to be said of all of them. */
(() => {
  "use strict";

  const { el, setText, setAttribute, setList, show, laneView } = window.sparsed.tools;

  // A replay in a file of its own has nobody to tell.
  function mountStage(root, trigger = () => {}) {
    const ratio = el("span", { class: "sd-ratio" });
    const words = el("span", { class: "sd-words" });
    const detail = el("span", { class: "sd-detail" });
    const same = el("span", { class: "sd-same" });
    const sameWords = el("span", { class: "sd-words" });
    const sameDetail = el("span", { class: "sd-detail" });
    const speed = el("div", { class: "sd-score sd-score-speed" }, el("p", {}, ratio, words), detail);
    const agreement = el("div", { class: "sd-score" }, el("p", {}, same, sameWords), sameDetail);
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
    let spokenOf = null; // the run of which it was said that it is sparse
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
      setText(message, value.message);
      show(message, Boolean(value.message));
      setAttribute(message, "data-state", value.state);
      setAttribute(root.firstElementChild, "data-state", value.state);
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
      setAttribute(root.firstElementChild, "data-run", value.run);
      setAttribute(root.firstElementChild, "data-sequence", value.sequence);
      const score = value.speedup;
      show(speed, Boolean(score));
      if (score) {
        setText(ratio, score.text);
        setText(words, score.words);
        setText(detail, score.detail);
        setAttribute(speed, "data-sense", score.words.split(" ")[0]);
      }
      show(agreement, Boolean(value.agreement));
      if (value.agreement) {
        setText(same, value.agreement.text);
        setText(sameWords, value.agreement.words);
        setText(sameDetail, value.agreement.detail);
      }
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
      const of = (key) => value.lanes.find((lane) => lane.key === key);
      const large = of(value.headline);
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
      setText(gold, value.gold);
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
    return el("ul", { class: "sd-legend", "aria-label": "How to read the canvas" },
      entry("masked", "", "masked"),
      entry("fresh", "word", "just committed"),
      entry("settled", "word", "settled"),
      entry("end", "∎", "after the end"),
      differs);
  }

  window.sparsed.define("stage", mountStage);
})();
