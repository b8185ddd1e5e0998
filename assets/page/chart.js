/* A figure of plotly, in the colours of the design that is on. */
(() => {
  "use strict";

  const { el, setAttribute, onThemeChange } = window.sparsed.tools;
  const PLOTLY = document.currentScript.dataset.plotly;
  const DRAW_EVERY_MS = 250;
  const NEAR = "600px"; // of the window

  let plotlyLoading = null;
  let looked = null; // the layer and head of the last detailed view
  function loadPlotly() {
    plotlyLoading ??= new Promise((resolve, reject) => {
      const script = el("script", { src: PLOTLY });
      script.addEventListener("load", () => resolve(window.Plotly));
      script.addEventListener("error", () => reject(new Error("plotly.js could not be loaded")));
      document.head.append(script);
    });
    return plotlyLoading;
  }

  // Figures name colours as CSS variables, so that one figure serves the light and the dark design.
  function resolveColours(value, styles) {
    if (typeof value === "string") {
      const match = /^var\((--[\w-]+)\)$/.exec(value);
      return match ? styles.getPropertyValue(match[1]).trim() : value;
    }
    if (Array.isArray(value)) {
      // Long rows of numbers hold no colours; a colour scale's entries are pairs of a number and a colour.
      return value.length > 2 && typeof value[0] === "number" ? value : value.map((item) => resolveColours(item, styles));
    }
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolveColours(item, styles)]));
    }
    return value;
  }

  function mountChart(root, trigger) {
    const plot = el("div", { class: "sd-plot", role: "img" });
    root.replaceChildren(plot);
    // On a phone some scroll inside themselves, which must not need a pointer.
    root.tabIndex = window.matchMedia("(max-width: 760px)").matches ? 0 : -1;
    let figure = null;
    let timer = null;
    let last = 0;
    let near = false; // in sight, or soon: what stands far below or above costs no time while a run goes on
    let waiting = false; // for that, or for a size: a figure laid out without one would have its titles one over the other
    async function draw() {
      timer = null;
      last = performance.now();
      waiting = !near || !root.offsetWidth;
      if (waiting) return;
      const Plotly = await loadPlotly();
      if (!figure) return;
      const styles = getComputedStyle(root);
      const font = { family: styles.fontFamily };
      const { data, layout } = resolveColours(figure, styles);
      await Plotly.react(plot, data, { ...layout, font: { ...font, ...layout.font } }, { displayModeBar: false, responsive: true });
      if (!plot.dataset.drawn) {
        // For what other scripts lay over a chart: it may have moved or grown.
        plot.on("plotly_afterplot", drawn);
        // What was clicked, for the charts whose parts can be chosen.
        if (trigger) plot.on("plotly_click", (event) => {
          const point = event.points[0];
          trigger("click", { meta: point.data.meta ?? null, x: point.x, y: point.y });
        });
      }
      plot.dataset.drawn = String(Number(plot.dataset.drawn || 0) + 1);
      drawn();
      frame();
    }
    function drawn() {
      root.dispatchEvent(new CustomEvent("sparsed:drawn", { bubbles: true, detail: plot }));
    }
    // Among the heads of a layer, a frame around the one that is looked at in detail.
    function frame() {
      const { layer, heads } = (figure && figure.layout.meta) || {};
      if (heads === undefined || !window.Plotly || !plot.dataset.drawn) return;
      if (!root.offsetWidth) {
        waiting = true;
        return;
      }
      const shapes = resolveColours(figure.layout.shapes || [], getComputedStyle(root));
      if (looked && looked.layer === layer && looked.head < heads) {
        const suffix = looked.head ? looked.head + 1 : "";
        const [x0, x1] = figure.layout[`xaxis${suffix}`].range;
        const [y0, y1] = figure.layout[`yaxis${suffix}`].range;
        shapes.push({
          type: "rect", name: "looked at", xref: `x${suffix}`, yref: `y${suffix}`, x0, x1, y0, y1,
          line: { color: getComputedStyle(root).getPropertyValue("--sd-ink").trim(), width: 3 },
        });
      }
      window.Plotly.relayout(plot, { shapes });
    }
    document.addEventListener("sparsed:head", frame);
    function soon() {
      if (timer === null) timer = setTimeout(draw, Math.max(0, last + DRAW_EVERY_MS - performance.now()));
    }
    onThemeChange(() => figure && soon());
    function wake() {
      if (near && waiting && figure) soon();
    }
    new IntersectionObserver((entries) => {
      near = entries.at(-1).isIntersecting;
      wake();
    }, { rootMargin: NEAR }).observe(root);
    new ResizeObserver(() => {
      if (!root.offsetWidth || waiting) return wake();
      if (window.Plotly && plot.classList.contains("js-plotly-plot")) window.Plotly.Plots.resize(plot);
    }).observe(root);
    return (value) => {
      if (!value || !value.figure) return;
      figure = value.figure;
      setAttribute(plot, "aria-label", value.label);
      setAttribute(plot, "data-empty", figure.data.length ? null : "");
      // Its place from the beginning; and plotly's own box loses its height when it is drawn anew and then made wider.
      if (figure.layout.height) plot.style.minHeight = `${figure.layout.height}px`;
      const { layer, head } = figure.layout.meta || {};
      if (head !== undefined) {
        looked = { layer, head };
        document.dispatchEvent(new Event("sparsed:head"));
      }
      soon();
    };
  }

  window.sparsed.define("chart", mountChart);
})();
