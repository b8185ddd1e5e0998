/* The heading of a replay that is a file of its own. */
(() => {
  "use strict";

  const { el, setText, onThemeChange } = window.sparsed.tools;

  function mountRecord(root) {
    const title = el("h1", { class: "sd-title" });
    const facts = el("ul", { class: "sd-chips", "aria-label": "Where and when" });
    const toggle = el("button", { class: "sd-theme", type: "button", "aria-label": "Switch between the light and the dark design" });
    root.replaceChildren(el("header", { class: "sd-header" }, el("div", { class: "sd-brand" }, el("div", {}, title, facts)), toggle));
    const wish = window.matchMedia("(prefers-color-scheme: dark)");
    const dark = (on) => document.body.classList.toggle("dark", on);
    const label = () => setText(toggle, document.body.classList.contains("dark") ? "Light" : "Dark");
    const follow = () => dark(wish.matches);
    follow();
    label();
    onThemeChange(label);
    wish.addEventListener("change", follow);
    toggle.addEventListener("click", () => {
      wish.removeEventListener("change", follow);
      dark(!document.body.classList.contains("dark"));
    });
    return (value) => {
      setText(title, value.title);
      facts.replaceChildren(...value.facts.map((fact) => el("li", {}, fact)));
    };
  }

  window.sparsed.define("record", mountRecord);
})();
