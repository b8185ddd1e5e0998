/* The next question, the whole prompt, and what is to be said about it. */
(() => {
  "use strict";

  const { el, setText, setAttribute, setList, show } = window.sparsed.tools;
  const { number } = window.sparsed.format;

  function mountPrompt(root, trigger) {
    const next = el("span", { class: "sd-next" }, "Next");
    const question = el("p", { class: "sd-question" });
    const facts = el("p", { class: "sd-facts" });
    const notes = el("ul", { class: "sd-notes", hidden: "" });
    const text = el("pre", { class: "sd-prompt-text", tabindex: "0", "aria-label": "The whole prompt" });
    const summary = el("summary", {}, "Read the prompt");
    const details = el("details", { class: "sd-preview" }, summary, text);
    const anew = el("button", { class: "sd-anew", type: "button", hidden: "" }, "New conversation");
    anew.addEventListener("click", () => trigger("clear"));
    root.replaceChildren(
      el("section", { class: "sd-prompt", "aria-label": "Prompt" },
        el("div", { class: "sd-prompt-line" }, next, question, facts, anew, details), notes),
    );
    let current = { text: "", needed: [] };
    let shown = null;
    // A prompt of 64k tokens is laid out when somebody opens it, not before; the documents that the question needs are
    // marked.
    const fill = () => {
      if (!details.open || shown === current) return;
      const ends = [0, ...current.needed.flat(), current.text.length];
      const parts = ends.slice(1).map((end, place) => current.text.slice(ends[place], end));
      text.replaceChildren(...parts.map((part, place) => (place % 2 ? el("mark", {}, part) : part)));
      const count = current.needed.length;
      setAttribute(text, "data-legend", count ? `Marked: ${count === 1 ? "the document" : `the ${count} documents`} that the question needs.` : "");
      shown = current;
    };
    details.addEventListener("toggle", fill);
    // It lies over what is below, so it goes out of the way by itself.
    const close = (event) => {
      if (details.open && !(event.target instanceof Node && details.contains(event.target))) details.open = false;
    };
    document.addEventListener("pointerdown", close);
    details.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !details.open) return;
      details.open = false;
      summary.focus();
    });
    return (value) => {
      if (!value) return;
      const ready = value.state === "ready";
      show(next, ready && Boolean(value.question));
      show(question, ready ? Boolean(value.question) : value.state === "loading");
      show(facts, ready || value.state === "empty" || Boolean(value.offer));
      show(details, ready);
      show(anew, ready && Boolean(value.turn));
      setList(notes, value.notes);
      // While a model is loaded, what is asked for has not changed.
      if (value.state !== "loading") document.dispatchEvent(new CustomEvent("sparsed:asks", { detail: value.asks ?? "" }));
      if (value.state === "loading") setText(question, value.message || "The model is loading …");
      if (value.state === "empty") setText(facts, "Type or paste a prompt above.");
      if (value.offer) setText(facts, value.offer);
      if (!ready) return;
      setText(question, value.question);
      setAttribute(question, "title", value.question);
      const parts = [`${number(value.tokens)} prompt tokens`];
      if (value.turn) parts.unshift(value.turn);
      if (value.gold) parts.push("the expected answer is known");
      if (value.lanes) parts.push(value.lanes);
      if (value.estimate) parts.push(value.estimate, ...(value.ends ? [value.ends] : []));
      setText(facts, parts.join(" · "));
      setAttribute(facts, "title", facts.textContent);
      const same = value.text === current.text && String(value.needed) === String(current.needed);
      if (!same) current = { text: value.text, needed: value.needed };
      fill();
    };
  }

  window.sparsed.define("prompt", mountPrompt);
})();
