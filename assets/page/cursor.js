/* The playhead in the chart of the time per step: a line laid over the figure, which is not drawn anew for it. A click
   in the chart asks for that step (replay.js). */
(() => {
  "use strict";

  const { el, setAttribute, show, stepOf } = window.sparsed.tools;

  const line = el("div", { class: "sd-cursor", "aria-hidden": "true", hidden: "" });
  let plot = null;

  const laneOf = () => plot.layout && plot.layout.meta && plot.layout.meta.playhead;

  function place() {
    const at = plot && laneOf() !== undefined ? stepOf(laneOf()) : undefined;
    const { xaxis, _size: size } = (plot && plot._fullLayout) || {};
    const x = at && xaxis && xaxis.l2p ? xaxis.l2p(at.step) : -1;
    const inside = Boolean(at) && x >= 0 && x <= xaxis._length;
    show(line, inside);
    if (!inside) return;
    line.style.transform = `translateX(${xaxis._offset + x}px)`;
    line.style.top = `${size.t}px`;
    line.style.height = `${size.h}px`;
    setAttribute(line, "data-step", at.step);
  }

  function seek(event) {
    const { xaxis, _size: size } = plot._fullLayout;
    const box = plot.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left - xaxis._offset, event.clientY - box.top - size.t];
    if (x < 0 || x > xaxis._length || y < 0 || y > size.h) return;
    const detail = { lane: laneOf(), step: Math.max(0, Math.round(xaxis.p2l(x))) };
    document.dispatchEvent(new CustomEvent("sparsed:seek", { detail }));
  }

  document.addEventListener("sparsed:drawn", (event) => {
    const { meta } = event.detail.layout;
    if (!meta || meta.playhead === undefined) return event.detail === plot ? place() : undefined;
    if (plot !== event.detail) {
      plot = event.detail;
      plot.parentElement.append(line);
      plot.addEventListener("click", seek);
    }
    place();
  });
  document.addEventListener("sparsed:playhead", place);
})();
