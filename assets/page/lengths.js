/* Draws the comparison of prompt lengths: how far it is, and a table of its rows and of those pinned before. */
(() => {
  "use strict";

  const { el, setText, setAttribute, setList, show, progressOf } = window.sparsed.tools;
  const { clock, number, bytes } = window.sparsed.format;
  const HINT = "Choose prompt lengths and press Compare: each is raced in turn, and its row appears here.";
  // A mark and a word for every state: never a colour alone.
  const STATES = {
    waiting: ["○", "waiting"],
    preparing: ["◔", "preparing"],
    running: ["▶", "running"],
    done: ["✓", "done"],
    refused: ["⊘", "refused"],
    failed: ["✗", "failed"],
    stopped: ["■", "stopped"],
  };
  const PAIR = ["dense", "sparse"];

  // The columns of a table with the lanes of these rows: [its id, what stands above it, the lane's column or nothing].
  // Full attention and SparseD have the columns between which their speed-up stands; of further lanes it stands below
  // the seconds.
  function columnsOf(rows) {
    const lanes = new Map([["Full attention", "dense"], ["SparseD", "sparse"]]);
    for (const row of rows) {
      for (const lane of row.lanes) if (!lanes.has(lane.column)) lanes.set(lane.column, `lane-${lanes.size + 1}`);
    }
    const of = [...lanes].map(([column, id]) => [id, column, column]);
    const answers = of.map(([id, words, column]) => [`${id}-right`, `${words}’s answer`, column]);
    return [
      ...of, ["gain", "Speed-up", ""], ["same", "Same text", ""], ...answers, ["memory", "Peak memory", ""],
      ["paper", "In the paper", ""],
    ];
  }

  const right = (value) => (value === null ? "–" : value ? "✓ right" : "✗ wrong");
  // never: the lane was full attention to its end.
  const ran = (value, steps, other, never = false) => {
    if (value === null) return ["–", ""];
    return [clock(value), [steps === other ? "" : `${steps} steps`, never ? "never sparse" : ""].filter(Boolean).join(", ")];
  };

  // What a column's cell says of a row, and in smaller letters what belongs to it.
  function cell(row, [id, , column]) {
    if (id === "gain") return row.speedup ? [row.speedup.text, row.speedup.words] : ["–", row.never_sparse ? "never sparse" : ""];
    if (id === "same") return row.agreement ? [row.agreement.text, `${row.agreement.same} of ${row.agreement.compared}`] : ["–", ""];
    if (id === "memory") return [bytes(row.memory), ""];
    if (id === "paper") {
      const paper = row.published;
      return paper ? [paper.text, `${number(paper.dense_seconds)} → ${number(paper.sparse_seconds)} s`] : ["–", ""];
    }
    const lane = row.lanes.find((one) => one.column === column);
    if (!lane) return ["–", ""];
    const of = (what) => row[`${lane.key}_${what}`];
    if (id.endsWith("-right")) return [right(of("right")), of("right") ? "" : of("verdict") || ""];
    const [seconds, small] = ran(of("seconds"), of("steps"), otherSteps(row, lane), of("never_sparse"));
    if (PAIR.includes(lane.key)) return [seconds, small];
    const [gain, same] = [of("speedup"), of("agreement")];
    return [seconds, [gain ? `${gain.text} ${gain.words}` : "", same ? `${same.text} same` : "", small].filter(Boolean).join(", ")];
  }

  // The steps of the lane that this one is beside: SparseD's for full attention, full attention's for every other.
  const otherSteps = (row, lane) => row[lane.key === "dense" ? "sparse_steps" : "dense_steps"];

  function drawnRow(columns) {
    const name = el("b", {});
    const tokens = el("span", { class: "sd-small" });
    const head = el("th", { scope: "row" }, name, tokens);
    const mark = el("span", { "aria-hidden": "true" });
    const word = el("span", {});
    const step = el("span", { class: "sd-small" });
    const state = el("td", { class: "sd-compare-state" }, mark, word, step);
    const sentence = el("td", { class: "sd-compare-why", colspan: columns.length, hidden: "" });
    const fields = columns.map((column) => {
      const value = el("span", {});
      const small = el("span", { class: "sd-small" });
      return { column, value, small, cell: el("td", { "data-column": column[0] }, value, small) };
    });
    const root = el("tr", {}, head, state, ...fields.map((field) => field.cell), sentence);
    return {
      root,
      draw(row) {
        const [sign, said] = STATES[row.state];
        const ended = ["refused", "failed", "stopped"].includes(row.state);
        setAttribute(root, "data-length", row.length);
        setAttribute(root, "data-state", row.state);
        setText(name, row.name);
        setText(tokens, row.tokens === null ? "" : `${number(row.tokens)} tokens`);
        setText(mark, `${sign} `);
        setText(word, said);
        setText(step, row.state === "running" ? `step ${row.step} of ${row.total}` : "");
        setText(sentence, row.message);
        show(sentence, ended);
        for (const field of fields) {
          const [said, small] = cell(row, field.column);
          show(field.cell, !ended);
          setText(field.value, said);
          setText(field.small, small);
          setAttribute(field.cell, "data-right", field.column[0].endsWith("-right") ? said.slice(2) : null);
        }
        setAttribute(root, "data-sense", row.speedup ? row.speedup.words.split(" ")[0] : null);
      },
    };
  }

  // The rows of one comparison; they stay the same nodes while it goes on.
  function group(columns) {
    const body = el("tbody", {});
    let rows = [];
    return {
      body,
      draw(wanted) {
        while (rows.length < wanted.length) rows.push(drawnRow(columns));
        rows = rows.slice(0, wanted.length);
        if (body.children.length !== rows.length) body.replaceChildren(...rows.map((row) => row.root));
        rows.forEach((row, index) => row.draw(wanted[index]));
      },
    };
  }

  function mountComparison(root) {
    const progress = progressOf("Progress of the comparison");
    const title = el("span", {});
    const head = el("tr", {});
    const table = el("table", { class: "sd-compare-table" }, el("caption", {}, title), el("thead", {}, head));
    const box = el("div", { class: "sd-compare-box", role: "region", tabindex: "0", "aria-label": "Table of the comparison" }, table);
    const notes = el("ul", { class: "sd-compare-notes" });
    const hint = el("p", { class: "sd-intro" }, HINT);
    root.replaceChildren(
      el("section", { class: "sd-compare", "aria-label": "Comparison of prompt lengths" }, ...progress.parts, hint, box, notes),
    );
    let columns = [];
    let current = null;
    let pinned = "";

    // Other lanes are other columns: the table is then made anew.
    function drawColumns(rows) {
      const wanted = columnsOf(rows);
      if (JSON.stringify(wanted) === JSON.stringify(columns)) return;
      columns = wanted;
      const above = [["prompt", "Prompt"], ["state", "State"], ...columns];
      head.replaceChildren(...above.map(([column, words]) => el("th", { scope: "col", "data-column": column }, words)));
      for (const old of table.querySelectorAll("tbody")) old.remove();
      current = group(columns);
      table.append(current.body);
      pinned = "";
    }

    function drawPins(pins) {
      const wanted = JSON.stringify(pins);
      if (wanted === pinned) return;
      pinned = wanted;
      for (const old of table.querySelectorAll("tbody[data-pin]")) old.remove();
      for (const pin of pins) {
        const rows = group(columns);
        rows.draw(pin.rows);
        rows.body.dataset.pin = "";
        rows.body.prepend(el("tr", {}, el("th", { scope: "rowgroup", colspan: columns.length + 2 }, el("span", {}, `Pinned: ${pin.label}`))));
        table.append(rows.body);
      }
    }

    function drawNotes(value) {
      const said = value.rows.flatMap((row) => row.notes.map((note) => `${row.name}: ${note}`));
      if (value.mode) said.push(value.mode);
      if (value.rows.some((row) => row.memory !== null) && value.memory) said.push(value.memory);
      if (value.rows.some((row) => row.published)) said.push(value.paper);
      setList(notes, said);
    }

    return (given) => {
      const value = given || { state: "idle", message: "", label: "", question: "", progress: 0, progress_text: "", rows: [], pins: [] };
      const pins = value.pins || [];
      const begun = value.rows.length > 0;
      setAttribute(root.firstElementChild, "data-state", value.state);
      progress.draw(value, begun);
      show(hint, !begun && !pins.length && !value.message);
      show(box, begun || pins.length > 0);
      setText(title, begun ? [value.label, value.question].filter(Boolean).join(" · ") : "Pinned comparisons");
      drawColumns([...value.rows, ...pins.flatMap((pin) => pin.rows)]);
      current.draw(value.rows);
      drawPins(pins);
      drawNotes(value);
      document.dispatchEvent(new CustomEvent("sparsed:comparison", { detail: value }));
    };
  }

  window.sparsed.define("comparison", mountComparison);
})();
