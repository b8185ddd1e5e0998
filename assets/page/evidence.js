/* What a token of the answer can see: its query block's row in the block map, and below the map a strip of the key
   blocks, lit where that row keeps them, with the documents marked that the question needs. The value is that of
   app/finished/evidence.py; a lane's canvas asks (`pointAt`) and says in its tip what it is answered. */
(() => {
  "use strict";

  const { el, setText, setAttribute, show } = window.sparsed.tools;
  const IDLE = "Point at a word of an answer: the key blocks that its row keeps light up.";

  const cells = el("div", { class: "sd-strip-cells" });
  const marks = el("div", { class: "sd-strip-marks" });
  const said = el("p", { class: "sd-strip-said" });
  const bars = el("div", { class: "sd-strip-bars", "aria-hidden": "true" }, cells, marks);
  const strip = el("div", { class: "sd-strip", hidden: "" }, bars, said);
  const row = el("div", { class: "sd-map-row", hidden: "" });
  let plot = null;
  let evidence = null;
  let asked = ["", -1];

  // What the evidence calls a lane: of a run that goes on the headline's is "".
  function keyOf(lane) {
    const { playhead } = window.sparsed;
    return lane in evidence.lanes || !(playhead && lane === playhead.headline) ? lane : "";
  }

  // The key blocks that a lane's query block sees; undefined where that is not known.
  function keptBy(lane, block) {
    const { lanes, blocks, prompt, size } = evidence;
    const key = keyOf(lane);
    if (lanes[key] === undefined) return undefined;
    const all = Array.from({ length: blocks }, (_, index) => index);
    if (lanes[key] === null) return all;
    const bytes = atob(lanes[key][block - Math.floor(prompt / size)]);
    return all.filter((index) => bytes.charCodeAt(index >> 3) & (128 >> (index & 7)));
  }

  function neededBlocks() {
    const found = new Set();
    for (const [first, last] of evidence.needed) for (let block = first; block <= last; block += 1) found.add(block);
    return [...found].sort((a, b) => a - b);
  }

  function build() {
    const { blocks, needed } = evidence;
    if (cells.childElementCount !== blocks) cells.replaceChildren(...Array.from({ length: blocks }, () => el("i", {})));
    const side = Math.floor(evidence.prompt / evidence.size);
    [...cells.children].forEach((cell, index) => setAttribute(cell, "data-generation", index >= side ? "" : null));
    setAttribute(strip, "data-many", blocks > 128 ? "" : null);
    marks.replaceChildren(...needed.map(([first, last]) => {
      const mark = el("i", {});
      Object.assign(mark.style, { left: `${(100 * first) / blocks}%`, width: `${(100 * (last + 1 - first)) / blocks}%` });
      return mark;
    }));
  }

  // Lights what a cell of a lane's canvas can see, none for −1; what its tip says of it.
  function pointAt(lane, cell) {
    asked = [lane, cell];
    const at = evidence && cell >= 0 ? window.sparsed.tools.stepOf(lane) : undefined;
    const same = at && Math.ceil(at.positions / evidence.size) === evidence.blocks; // not a map of another run
    const block = same ? Math.floor((evidence.prompt + cell) / evidence.size) : -1;
    const kept = same ? keptBy(lane, block) : undefined;
    const lit = new Set(kept);
    [...cells.children].forEach((each, index) => setAttribute(each, "data-kept", lit.has(index) ? "" : null));
    show(row, Boolean(kept));
    setAttribute(row, "data-row", kept ? block : null);
    const marked = evidence && evidence.needed.length ? " Marked: where the documents lie that the question needs." : "";
    setText(said, IDLE + marked);
    if (!kept) return "";
    Object.assign(row.style, { top: `${(100 * block) / evidence.blocks}%`, height: `${100 / evidence.blocks}%` });
    const needed = neededBlocks();
    const found = needed.filter((index) => lit.has(index)).length;
    const where = `layer ${evidence.layer}, head ${evidence.head}`;
    const of = needed.length ? `, ${found} of the ${needed.length} with needed documents` : "";
    const { what_if: tried } = evidence;
    const other = tried && keyOf(lane) === tried.lane ? `At select ${tried.select} query block ${block} would see` : "";
    setText(said, `${other || `Query block ${block} sees`} ${lit.size} of ${evidence.blocks} key blocks in ${where}${of}.`);
    return `${other ? `At select ${tried.select} its row would see` : "Its row sees"} ${lit.size} of ${evidence.blocks} key blocks${of} (${where}).`;
  }

  document.addEventListener("sparsed:drawn", (event) => {
    const { meta } = event.detail.layout;
    if (!(meta && meta.map) && event.detail !== plot) return;
    if (plot !== event.detail) {
      plot = event.detail;
      plot.parentElement.append(strip);
      plot.parentElement.querySelector(".sd-map-over").append(row);
    }
    const given = (meta && meta.evidence) || null;
    show(strip, Boolean(given));
    // Below the map's own columns.
    const { xaxis } = plot._fullLayout;
    if (given && xaxis._length) Object.assign(bars.style, { marginLeft: `${xaxis._offset}px`, width: `${xaxis._length}px` });
    if (JSON.stringify(given) === JSON.stringify(evidence)) return;
    evidence = given;
    if (evidence) build();
    pointAt(...asked);
  });

  window.sparsed.tools.pointAt = pointAt;
})();
