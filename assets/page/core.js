/* Draws what the server sends as JSON: each view is a function that a script beside this one registers under a name.
   Text from a visitor or a model is only ever set as textContent. */
(() => {
  "use strict";

  const BUTTONS = JSON.parse(document.currentScript.dataset.buttons ?? "{}");

  function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined) node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }

  // Touching the document only where something changed keeps eight updates a second cheap.
  function setText(node, text) {
    const next = text === null || text === undefined ? "" : String(text);
    if (node.textContent !== next) node.textContent = next;
  }

  function setAttribute(node, name, value) {
    if (value === null || value === undefined) {
      if (node.hasAttribute(name)) node.removeAttribute(name);
    } else if (node.getAttribute(name) !== String(value)) {
      node.setAttribute(name, value);
    }
  }

  function show(node, visible) {
    if (node.hidden === visible) node.hidden = !visible;
  }

  // The sentences of a list, which hides where there are none.
  function setList(list, sentences) {
    const wanted = sentences || [];
    if (list.dataset.shown === JSON.stringify(wanted)) return;
    list.dataset.shown = JSON.stringify(wanted);
    list.replaceChildren(...wanted.map((sentence) => el("li", {}, sentence)));
    show(list, wanted.length > 0);
  }

  // How far several races are: a message, a bar, and words. `draw` takes a value with state, message, progress (0 … 1)
  // and progress_text.
  function progressOf(label) {
    const message = el("p", { class: "sd-message", role: "status", "aria-live": "polite" });
    const far = el("p", { class: "sd-intro" });
    const fill = el("i", {});
    const bar = el("div", { class: "sd-progress", role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 }, el("span", { class: "sd-fill" }, fill));
    return { parts: [message, bar, far], draw(value, begun) {
      setText(message, value.message);
      show(message, Boolean(value.message));
      setAttribute(message, "data-state", value.state);
      show(bar, begun);
      show(far, begun);
      setAttribute(bar, "aria-valuenow", Math.round(100 * value.progress));
      setAttribute(bar, "aria-valuetext", value.progress_text);
      fill.style.transform = `scaleX(${value.progress})`;
      setText(far, value.progress_text);
    } };
  }

  const themeListeners = [];
  function onThemeChange(listener) {
    if (!themeListeners.length) {
      let before = null;
      new MutationObserver(() => {
        const now = document.body.classList.contains("dark");
        if (now === before) return;
        before = now;
        for (const each of themeListeners) each();
      }).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    }
    themeListeners.push(listener);
  }

  // What a button does, said when it is pointed at or focused: gradio's buttons have no room for it.
  for (const kind of ["pointerover", "focusin"]) {
    document.addEventListener(kind, (event) => {
      const button = event.target instanceof Element && event.target.closest("button");
      const said = button && BUTTONS[(button.id ? button : button.closest("[id]"))?.id];
      if (said && button.title !== said) button.title = said;
    });
  }

  const kinds = {};

  window.sparsed = {
    tools: { el, setText, setAttribute, setList, show, progressOf, onThemeChange },
    // mount: (element, trigger) → a function that draws a value.
    define(kind, mount) {
      kinds[kind] = mount;
    },
    mount(kind, element, props, watch, trigger) {
      const draw = kinds[kind](element.querySelector(".sd-view"), trigger);
      // The value is JSON text: objects would be copied and compared by gradio again and again.
      const update = () => draw(props.value ? JSON.parse(props.value) : null);
      update();
      watch("value", update);
    },
    // The last line of the bundle calls it: every view is defined by then.
    start() {
      this.started = true;
      for (const go of window.sparsedWaiting || []) go();
    },
  };
})();
