/* One playhead: which step each lane shows, of a run that goes on as of one that is played again. Whatever follows it
   listens to `sparsed:playhead` or asks `stepOf`. The event's detail: {time: seconds of the lane that used most, steps:
   [{lane, step, phase, rows, positions}], headline: a lane's key, live: a run, not a replay}.
   The counter among the scores says what the headline's lane has computed by then. */
(() => {
  "use strict";

  const { el, setText, setAttribute, show } = window.sparsed.tools;
  const { number, percent } = window.sparsed.format;

  const share = (part, all) => Math.round(100 * (all ? 1 - part / all : 0));

  const skipped = el("b", { class: "sd-skipped" });
  const pairs = el("span", { class: "sd-detail" });
  const rows = el("span", { class: "sd-detail" });
  const words = el("span", { class: "sd-words" });
  const counter = el("div", { class: "sd-score sd-counter", hidden: "" }, el("p", {}, skipped, " ", words), pairs, rows);
  setAttribute(counter, "title", "Pairs of a query block and a key block in a head, the mean over all heads and layers.");

  // Of lanes with a cache: the rows. Which of them a step computed is not told, so their pairs are not counted.
  const rowsOf = ({ label, counted: { rows } }) => `${label}: ${number(rows[0])} of ${number(rows[1])} rows`;

  function drawCounter(value) {
    const lane = value.lanes.find(({ key }) => key === value.headline);
    const known = lane && lane.counted && lane.counted.pairs;
    show(counter, Boolean(known));
    if (!known) return;
    const scores = document.querySelector(".sd-scores");
    if (scores && counter.parentElement !== scores) scores.append(counter);
    // While every pair was computed, a large "0 %" would be the first number that a visitor reads.
    const some = known[0] < known[1];
    show(skipped, some);
    setText(skipped, some ? percent(share(...known)) : "");
    setText(words, some ? "of block pairs skipped" : "every block pair computed so far");
    const cached = value.lanes.filter((each) => each.step_rows && each.counted).map(rowsOf);
    setText(pairs, `${number(Math.round(known[0]))} of ${number(known[1])} a head computed`);
    setText(rows, cached.join(" · "));
    setAttribute(counter, "data-step", lane.step);
  }

  let before = "";
  document.addEventListener("sparsed:stage", (event) => {
    const value = event.detail;
    // Before the first step of a run, the stage shows what it did before.
    if (!value.replay && !value.lanes.some((lane) => lane.step)) return;
    drawCounter(value);
    const steps = value.lanes.map(({ key, step, phase, rows, positions }) => ({ lane: key, step, phase, rows, positions }));
    const time = Math.max(0, ...value.lanes.map((lane) => lane.seconds));
    const playhead = { time, steps, headline: value.headline, live: !value.replay };
    const now = JSON.stringify(playhead);
    if (now === before) return;
    before = now;
    window.sparsed.playhead = playhead;
    document.dispatchEvent(new CustomEvent("sparsed:playhead", { detail: playhead }));
  });

  // The step that the playhead has in a lane, "" being the headline's; nothing where no such lane is shown.
  window.sparsed.tools.stepOf = (lane) => {
    const head = window.sparsed.playhead;
    return head && head.steps.find((each) => each.lane === (lane || head.headline));
  };
})();
