/* Twenty questions like the last run's: how far they are, and of each lane how often it is right. */
(() => {
  "use strict";

  const { el, setText, setAttribute, show, progressOf } = window.sparsed.tools;
  const HINT = "One question is one answer. After a run, “20 questions like this”, beside the replay, asks more of its kind and length with the same lanes and settings, and counts here.";
  const SHIPPED = "Of the evaluation that comes with the app: questions of this type and length, with these settings.";
  const COLUMNS = [["Lane", ""], ["Right answers", "95 % interval"], ["Time a question", "mean"], ["Points to full attention", "95 % interval"]];

  function drawnRow() {
    const name = el("th", { scope: "row" });
    const right = el("b", {});
    const share = el("i", { class: "sd-share", "aria-hidden": "true" });
    const range = el("span", { class: "sd-small" });
    const shipped = el("span", { class: "sd-small sd-shipped", title: SHIPPED });
    const seconds = el("span", {});
    const gain = el("span", { class: "sd-small" });
    const difference = el("span", {});
    const within = el("span", { class: "sd-small" });
    const root = el("tr", {}, name, el("td", {}, right, share, range, shipped), el("td", {}, seconds, gain), el("td", {}, difference, within));
    return {
      root,
      draw(lane) {
        const { right: count, questions, interval: [low, high] } = lane;
        setAttribute(root, "data-lane-row", lane.key);
        setAttribute(root, "style", `--lane: var(--lane-${lane.style})`);
        setText(name, lane.label);
        setText(right, questions ? `${count} of ${questions}` : "–");
        share.style.setProperty("--low", low);
        share.style.setProperty("--high", high);
        share.style.setProperty("--at", questions ? count / questions : -1);
        setText(range, questions ? lane.range : "");
        setText(shipped, lane.shipped ? `evaluation: ${lane.shipped}` : "");
        show(shipped, Boolean(lane.shipped));
        setText(seconds, lane.seconds ?? "–");
        const never = lane.never_sparse ? `never sparse in ${lane.never_sparse}` : "";
        setText(gain, [lane.gain ? `${lane.gain.text} ${lane.gain.words}` : "", never].filter(Boolean).join(", "));
        setText(difference, lane.difference ? lane.difference.text : "–");
        setText(within, lane.difference ? lane.difference.range : lane.full ? "" : "from 5 questions on");
      },
    };
  }

  function mountSeries(root) {
    const progress = progressOf("Progress of the questions");
    const title = el("caption", {});
    const body = el("tbody", {});
    const head = el("tr", {}, ...COLUMNS.map(([words, small]) => el("th", { scope: "col" }, words, el("span", { class: "sd-small" }, small))));
    const table = el("table", { class: "sd-series-table" }, title, el("thead", {}, head), body);
    const box = el("div", { class: "sd-series-box", role: "region", tabindex: "0", "aria-label": "Right answers of each lane" }, table);
    const hint = el("p", { class: "sd-hint" }, HINT);
    const section = el("section", { class: "sd-series", "aria-label": "Twenty questions" }, hint, ...progress.parts, box);
    root.replaceChildren(section);
    let rows = [];
    let state = "idle";

    return (value) => {
      const begun = value.lanes.length > 0;
      setAttribute(section, "data-state", value.state);
      show(hint, !begun && !value.message);
      progress.draw(value, begun);
      show(box, begun);
      setText(title, value.label);
      if (rows.length !== value.lanes.length) {
        rows = value.lanes.map(drawnRow);
        body.replaceChildren(...rows.map((row) => row.root));
      }
      value.lanes.forEach((lane, index) => rows[index].draw(lane));
      // Whoever starts it sees it begin, once it has its height: what is below has moved then, out of sight.
      if (value.state !== state && value.state === "running") {
        requestAnimationFrame(() => requestAnimationFrame(() => root.scrollIntoView({ block: "nearest" })));
      }
      state = value.state;
    };
  }

  window.sparsed.define("series", mountSeries);
})();
