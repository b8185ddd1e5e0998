/* The name of the page, the model and device, and the switch between the light and the dark design. */
(() => {
  "use strict";

  const { el, setText, onThemeChange } = window.sparsed.tools;
  const THEME_KEY = "sparsed-theme";

  function mountHeader(root) {
    const title = el("h1", { class: "sd-title" });
    const tagline = [el("span", {}), el("span", { class: "sd-tagline-more" })];
    const chips = el("ul", { class: "sd-chips", "aria-label": "Model and device" });
    const toggle = el("button", { class: "sd-theme", type: "button" });
    const mark = el("span", { class: "sd-mark", "aria-hidden": "true" });
    for (const kept of "1000110010101001") mark.append(el("i", { "data-kept": kept }));
    root.replaceChildren(
      el("header", { class: "sd-header" },
        el("div", { class: "sd-brand" }, mark, el("div", {}, title, el("p", { class: "sd-tagline" }, tagline[0], " ", tagline[1]))),
        el("div", { class: "sd-side" }, chips, toggle)),
    );
    const dark = () => document.body.classList.contains("dark");
    const label = () => setText(toggle, dark() ? "Light" : "Dark");
    const remembered = localStorage.getItem(THEME_KEY);
    if (remembered && !new URLSearchParams(location.search).has("__theme")) {
      document.body.classList.toggle("dark", remembered === "dark");
    }
    toggle.addEventListener("click", () => {
      document.body.classList.toggle("dark", !dark());
      localStorage.setItem(THEME_KEY, dark() ? "dark" : "light");
    });
    onThemeChange(label);
    label();
    toggle.setAttribute("aria-label", "Switch between the light and the dark design");
    return (value) => {
      if (!value) return;
      setText(title, value.title);
      tagline.forEach((node, index) => setText(node, value.tagline[index]));
      chips.replaceChildren(...value.chips.map((chip) => el("li", {}, chip)));
      chips.classList.toggle("sd-busy", Boolean(value.busy));
    };
  }

  window.sparsed.define("header", mountHeader);
})();
