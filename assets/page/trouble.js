/* What keeps a run from being made, near Run, and the button that leads back. */
(() => {
  "use strict";

  const { el, setText, show } = window.sparsed.tools;

  function mountTrouble(root, trigger) {
    const sentence = el("p", { class: "sd-problem", role: "alert", hidden: "" });
    const back = el("button", { class: "sd-back", type: "button", hidden: "" });
    root.replaceChildren(el("div", { class: "sd-trouble" }, sentence, back));
    back.addEventListener("click", () => trigger("select"));
    return (value) => {
      if (!value) return;
      setText(sentence, value.sentence);
      show(sentence, Boolean(value.sentence));
      setText(back, value.back);
      show(back, Boolean(value.back));
    };
  }

  window.sparsed.define("trouble", mountTrouble);
})();
