/* What a visitor can take away: files of the last run, and a link that brings its settings back. */
(() => {
  "use strict";

  const { el, setText, show } = window.sparsed.tools;

  function mountTakeaway(root) {
    const intro = el("p", { class: "sd-intro" });
    const files = el("ul", { class: "sd-files" });
    const address = el("input", { type: "text", readonly: "", id: "sd-link", "aria-label": "Link to these settings" });
    const copy = el("button", { type: "button", class: "sd-button" }, "Copy link");
    const said = el("span", { role: "status", "aria-live": "polite" });
    const line = el("p", { class: "sd-link-line" }, el("label", { for: "sd-link" }, "Link to these settings"), address, copy, said);
    const programs = el("p", { class: "sd-intro" }, el("a", { href: "?view=api", target: "_blank", rel: "noopener" }, "How programs ask"));
    root.replaceChildren(el("section", { class: "sd-takeaway", "aria-label": "Take it away" }, intro, files, line, programs));
    address.addEventListener("focus", () => address.select());
    copy.addEventListener("click", async () => {
      address.select();
      try {
        await navigator.clipboard.writeText(address.value);
        setText(said, "copied");
      } catch {
        setText(said, "press Ctrl+C to copy");
      }
    });
    return (value) => {
      setText(said, "");
      setText(intro, value ? (value.live ? "Your last run:" : "The recorded run:") : "After a run its files are here.");
      files.replaceChildren(...(value ? value.files : []).map((file) =>
        el("li", {}, el("a", { href: file.href, download: "" }, file.label))));
      address.value = value && value.link ? new URL(value.link, location.href).href : "";
      show(line, Boolean(value && value.link));
    };
  }

  window.sparsed.define("takeaway", mountTakeaway);
})();
