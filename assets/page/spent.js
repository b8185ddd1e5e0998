/* Where a step's time goes: for each lane and each kind of step a bar, attention beside the rest, in words as well. The
   value is that of app/finished/spent.py. */
(() => {
  "use strict";

  const { el, setList, show } = window.sparsed.tools;

  function bar({ seconds, attention }, most) {
    const [first, rest] = [el("i", { class: "sd-spent-attention" }), el("i", { class: "sd-spent-rest" })];
    first.style.width = `${(100 * attention) / most}%`;
    rest.style.width = `${(100 * (seconds - attention)) / most}%`;
    return el("div", { class: "sd-spent-bar", "aria-hidden": "true" }, first, rest);
  }

  const kind = (given, most) => el("li", { "data-kind": given.name },
    el("span", { class: "sd-spent-name" }, `${given.name} · ${given.steps === 1 ? "1 step" : `${given.steps} steps`}`),
    bar(given, most), el("span", { class: "sd-spent-words" }, given.said));

  function lane({ key, label, style, kinds }, most) {
    const title = el("h3", { id: `sd-spent-${key}` }, label);
    const section = el("section", { class: "sd-spent-lane", "aria-labelledby": title.id }, title,
      el("ul", {}, ...kinds.map((each) => kind(each, most))));
    section.style.setProperty("--lane", `var(--lane-${style})`);
    return section;
  }

  function mountSpent(root) {
    const said = el("ul", { class: "sd-spent-said" });
    const legend = el("p", { class: "sd-spent-legend" }, "The median step of each kind, by its own clock: ",
      el("i", { class: "sd-spent-attention" }), " attention, selection included; ",
      el("i", { class: "sd-spent-rest" }), " the rest of the network and the sampler.");
    const lanes = el("div", { class: "sd-spent-lanes" });
    root.replaceChildren(said, legend, lanes);
    // What stands below does not move up when a run of fewer lanes follows.
    let most = 0;
    window.addEventListener("resize", () => {
      most = 0;
      root.style.minHeight = "";
    });
    return (value) => {
      show(root, Boolean(value));
      if (!value) return;
      most = Math.max(most, root.getBoundingClientRect().height);
      root.style.minHeight = `${most}px`;
      setList(said, value.said);
      show(legend, value.lanes.length > 0);
      lanes.replaceChildren(...value.lanes.map((each) => lane(each, value.most)));
    };
  }

  window.sparsed.define("spent", mountSpent);
})();
