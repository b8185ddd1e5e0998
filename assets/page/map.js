/* What is laid over the block map of one head: at the playhead's step, all blocks before the selection, the selection as
   it is made, and the rows that a step computes or that see every key. The figure itself is not drawn anew. */
(() => {
  "use strict";

  const { el, setText, setAttribute, show, stepOf } = window.sparsed.tools;
  const { number, percent } = window.sparsed.format;
  // Cells of less are not told apart by lines.
  const CELL = 4;

  const veil = el("div", { class: "sd-map-veil" });
  const rows = el("div", { class: "sd-map-rows", hidden: "" });
  const over = el("div", { class: "sd-map-over", "aria-hidden": "true" }, veil, rows);
  const said = el("p", { class: "sd-map-step" });
  const tip = el("p", { class: "sd-tip sd-map-tip", hidden: "" });
  let plot = null;

  const about = () => plot && plot.layout && plot.layout.meta && plot.layout.meta.map;

  // Are these blocks of another select than the run's own?
  const tried = ({ select }) => typeof select === "number";

  // What the step does with the blocks: in words, and the first query block of those that are marked.
  function shown({ step, phase, rows: computed, positions }, map) {
    const { blocks, generation, full } = map;
    if (tried(map)) {
      return { said: `Not what the run did: at select ${map.select}, the coloured blocks alone.`, phase: "sparse" };
    }
    if (!step) return { said: "Before the first step.", phase: "dense" };
    const at = `Step ${step}`;
    if (computed < positions) {
      const how = `${number(computed)} of ${number(positions)} rows, all in the marked query blocks`;
      return { said: `${at}, few rows: ${how}${phase === "sparse" ? "; of their keys the coloured blocks" : ""}.`, phase, marked: generation };
    }
    if (phase === "dense") return { said: `${at}, full attention: all ${number(blocks ** 2)} pairs of blocks.`, phase };
    if (phase === "select") return { said: `${at}, the select step: all pairs once more; the coloured ones are chosen.`, phase };
    const rest = full ? "; the marked rows see every key" : "";
    return { said: `${at}, sparse: the coloured blocks alone${rest}.`, phase, marked: full ? blocks - full : undefined };
  }

  function place() {
    const map = about();
    const at = map ? stepOf(map.lane) : undefined;
    const { xaxis: x, yaxis: y } = (plot && plot._fullLayout) || {};
    const there = Boolean(at) && Boolean(x && x.l2p);
    show(over, there);
    setText(said, "");
    setAttribute(over, "data-step", there ? at.step : null);
    if (!there) return;
    const now = shown(at, map);
    setText(said, now.said);
    setAttribute(over, "data-phase", now.phase);
    Object.assign(over.style, { left: `${x._offset}px`, top: `${y._offset}px`, width: `${x._length}px`, height: `${y._length}px` });
    const cell = x._length / map.blocks;
    setAttribute(veil, "data-cells", cell >= CELL ? "" : null);
    veil.style.setProperty("--cell", `${cell}px`);
    show(rows, now.marked !== undefined);
    if (now.marked === undefined) return;
    const [first, last] = [y.l2p(now.marked - 0.5), y.l2p(map.blocks - 0.5)];
    Object.assign(rows.style, { top: `${first}px`, height: `${last - first}px` });
  }

  // A block's label as the figure has it: for plotly, whose labels may hold HTML.
  const plain = (label) => [["<br>", " "], ["&lt;", "<"], ["&gt;", ">"], ["&amp;", "&"]]
    .reduce((text, [from, to]) => text.replaceAll(from, to), label);

  function shareOf(part) {
    const value = 100 * part;
    return value < 0.01 ? `less than ${percent(0.01)}` : percent(value < 10 ? value.toFixed(2) : Math.round(value));
  }

  // What is said of a pair of blocks stands below the map: over it, it would cover the cell that it is about.
  function point({ points: [{ x, y, z, customdata, data }] }) {
    const share = customdata === undefined ? "" : `${shareOf(Math.abs(customdata))} of the row's attention, `;
    const would = tried(about()) ? "would be " : "";
    const kept = z >= data.meta.kept_from ? "kept" : "skipped";
    setText(tip, `query block ${plain(y)}\nkey block ${plain(x)}\n${share}${would}${kept}`);
    show(tip, true);
    tip.style.top = `${parseFloat(over.style.top) + parseFloat(over.style.height) + 4}px`;
  }

  document.addEventListener("sparsed:drawn", (event) => {
    const { meta } = event.detail.layout;
    if (!(meta && meta.map)) return event.detail === plot ? place() : undefined;
    if (plot !== event.detail) {
      plot = event.detail;
      plot.after(over, said, tip);
      plot.on("plotly_hover", (pointed) => about() && point(pointed));
      plot.on("plotly_unhover", () => show(tip, false));
    }
    place();
  });
  document.addEventListener("sparsed:playhead", place);
})();
