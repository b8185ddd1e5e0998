/* How it works, in scenes below the race, drawn from the run that is over: the value is that of app/finished/story.py. A
   press on a scene's button moves the playhead of the race to its step (replay.js). Nothing plays by itself. */
(() => {
  "use strict";

  const { el, setText, setAttribute, show } = window.sparsed.tools;
  const SVG = "http://www.w3.org/2000/svg";
  const SHADES = 8;

  function svg(tag, attributes) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  }

  // A small map of blocks: a path for each shade.
  function map({ rows, tone, edge }) {
    const size = rows.length;
    const picture = svg("svg", { viewBox: `0 0 ${size} ${size}`, "data-tone": tone });
    for (let shade = 1; shade <= SHADES; shade += 1) {
      const cells = rows.flatMap((row, y) => [...row].flatMap((digit, x) => (Number(digit) === shade ? [`M${x} ${y}h.9v.9h-.9z`] : [])));
      if (cells.length) picture.append(svg("path", { d: cells.join(""), "fill-opacity": shade / SHADES }));
    }
    const at = edge * size;
    picture.append(svg("path", { class: "sd-scene-edge", d: `M${at} 0V${size}M0 ${at}H${size}` }));
    return picture;
  }

  const canvas = ({ cells }) => el("p", {}, ...cells.map(([text, state]) =>
    el("span", { class: "sd-cell", "data-state": state }, state === "masked" ? "" : state === "end" ? "·" : text)));

  const rows = ({ shares }) => el("div", { class: "sd-scene-rows" }, ...shares.map((share) => {
    const bar = el("i", {});
    bar.style.height = `${share}%`;
    return bar;
  }));

  const KINDS = { map, canvas, rows };

  function scene({ key }) {
    const title = el("h3", { id: `sd-scene-${key}` });
    const words = el("p", { class: "sd-scene-words" });
    const drawing = el("div", { class: "sd-scene-drawing", "aria-hidden": "true" });
    const said = el("p", { class: "sd-scene-said" });
    const button = el("button", { type: "button", class: "sd-scene-show" });
    const section = el("section", { class: "sd-scene", "aria-labelledby": title.id, "data-scene": key }, title, words, drawing, said, button);
    return { section, title, words, drawing, said, button };
  }

  function mountStory(root) {
    const of = el("p", { class: "sd-story-of" });
    const list = el("div", { class: "sd-scenes" });
    root.replaceChildren(of, list);
    const scenes = new Map();
    let value = null;
    // While a run goes on there is nothing to go back to.
    let busy = false;

    function press({ lane, step }) {
      document.dispatchEvent(new CustomEvent("sparsed:seek", { detail: { lane, step } }));
      document.querySelector(".sd-stage").scrollIntoView({ block: "start" });
      // By keyboard the visitor goes on from there.
      const slider = document.querySelector(".sd-seek");
      if (slider) slider.focus({ preventScroll: true });
    }

    function free() {
      for (const { key, step } of value ? value.scenes : []) scenes.get(key).button.disabled = busy || step === null;
    }

    document.addEventListener("sparsed:stage", (event) => {
      const { state, replay } = event.detail;
      const now = !replay && ["loading", "preparing", "waiting", "running"].includes(state);
      if (now === busy) return;
      busy = now;
      free();
    });

    return (given) => {
      value = given;
      show(root, Boolean(value));
      if (!value) return;
      setText(of, value.of);
      for (const each of value.scenes) {
        if (!scenes.has(each.key)) {
          const made = scene(each);
          made.button.addEventListener("click", () => press(value.scenes.find(({ key }) => key === each.key)));
          scenes.set(each.key, made);
          list.append(made.section);
        }
        const { title, words, drawing, said, button } = scenes.get(each.key);
        setText(title, each.title);
        setText(words, each.words);
        setText(said, each.said);
        setText(button, each.step === null ? "Not in this run" : `Show step ${each.step} in the race`);
        setAttribute(drawing, "data-kind", each.drawing && each.drawing.kind);
        drawing.replaceChildren(...(each.drawing ? [KINDS[each.drawing.kind](each.drawing)] : []));
      }
      free();
    };
  }

  window.sparsed.define("story", mountStory);
})();
