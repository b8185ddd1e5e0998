/* The question, the whole prompt, and what is to be said about it. */
(() => {
  "use strict";

  const { el, setText, setList, show } = window.sparsed.tools;
  const { number } = window.sparsed.format;

  function mountPrompt(root) {
    const question = el("p", { class: "sd-question" });
    const facts = el("p", { class: "sd-facts" });
    const notes = el("ul", { class: "sd-notes", hidden: "" });
    const text = el("pre", { class: "sd-prompt-text", tabindex: "0", "aria-label": "The whole prompt" });
    const summary = el("summary", {}, "Read the prompt");
    const details = el("details", { class: "sd-preview" }, summary, text);
    root.replaceChildren(
      el("section", { class: "sd-prompt", "aria-label": "Prompt" }, question, facts, details, notes),
    );
    let current = "";
    // A prompt of 64k tokens is laid out when somebody opens it, not before.
    const fill = () => details.open && setText(text, current);
    details.addEventListener("toggle", fill);
    return (value) => {
      if (!value) return;
      const ready = value.state === "ready";
      show(question, ready ? Boolean(value.question) : value.state === "loading");
      show(facts, ready || value.state === "empty" || Boolean(value.offer));
      show(details, ready);
      setList(notes, value.notes);
      if (value.state === "loading") setText(question, value.message || "The model is loading …");
      if (value.state === "empty") setText(facts, "Type or paste a prompt above.");
      if (value.offer) setText(facts, value.offer);
      if (!ready) return;
      setText(question, value.question);
      const parts = [`${number(value.tokens)} prompt tokens`];
      if (value.gold) parts.push("the expected answer is known, and hidden until the end");
      if (value.lanes) parts.push(value.lanes);
      if (value.estimate) parts.push(value.estimate, ...(value.ends ? [value.ends] : []));
      setText(facts, parts.join(" · "));
      current = value.text;
      fill();
    };
  }

  window.sparsed.define("prompt", mountPrompt);
})();
