/* The conversation so far, the answer to go on from, and where one asks further. */
(() => {
  "use strict";

  const { el, setText, setAttribute, show } = window.sparsed.tools;
  const HINT =
    "After a run its question and its answer stand here. Ask a further question then: the model reads all of that before it.";
  const FURTHER = "A further question";
  const WHO = { user: "You", assistant: "Answer", system: "System" };

  function mountTalk(root, trigger) {
    const title = el("h2", { id: "sd-talk-title" }, "Ask further");
    const turns = el("ol", { class: "sd-turns", tabindex: "0", "aria-label": "What was said so far" });
    const refused = el("p", { class: "sd-intro", hidden: "" });
    const hint = el("p", { class: "sd-hint" }, HINT);
    const lanes = el("select", { id: "sd-talk-lane" });
    const from = el("label", { class: "sd-talk-from", for: "sd-talk-lane" }, "After the answer of", lanes);
    const text = el("textarea", { class: "sd-talk-text", rows: "2", "aria-label": FURTHER });
    const ask = el("button", { class: "sd-talk-ask", type: "submit" }, "Ask");
    const anew = el("button", { class: "sd-anew", type: "button" }, "New conversation");
    const form = el("form", { class: "sd-talk-form" }, text, from, ask, anew);
    const section = el("section", { class: "sd-talk", "aria-labelledby": "sd-talk-title", "data-state": "off" }, title, turns, refused, hint, form);
    root.replaceChildren(section);
    let current = { lanes: [], turns: [] };
    let busy = false;
    let ready = false;

    const answer = () => current.lanes.find(({ key }) => key === lanes.value) ?? current.lanes[0];
    const turn = (role, who, said) => el("li", { "data-role": role }, el("b", {}, who), el("span", {}, said));
    const free = () => {
      ask.disabled = busy || !ready || !text.value.trim();
      for (const each of [text, lanes, anew]) each.disabled = busy || !ready;
    };
    const fill = () => {
      const last = answer();
      turns.replaceChildren(
        ...current.turns.map(({ role, text: said }) => turn(role, WHO[role] ?? role, said)),
        ...(last ? [turn("assistant", `Answer, ${last.label}`, last.text)] : []),
      );
      turns.scrollTop = turns.scrollHeight;
    };
    lanes.addEventListener("change", fill);
    text.addEventListener("input", free);
    text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      form.requestSubmit();
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (ask.disabled) return;
      trigger("select", { text: text.value, lane: answer().key });
      document.getElementById("sd-race")?.scrollIntoView();
    });
    anew.addEventListener("click", () => trigger("clear"));
    return (value) => {
      if (!value) return;
      busy = value.state === "busy";
      if (!busy) ready = value.state === "ready";
      free();
      if (busy) return;
      // Before there is anything to ask about all of it is there, but for what it is about: nothing moves after a run.
      const off = value.state === "off";
      setAttribute(section, "data-state", value.state);
      setText(refused, value.said);
      show(refused, value.state === "refused");
      show(hint, off);
      show(turns, !off);
      show(form, off || ready);
      for (const each of [from, anew]) show(each, ready);
      if (off) {
        text.value = "";
        setAttribute(text, "placeholder", FURTHER);
        return;
      }
      if (value.key !== current.key) {
        const kept = lanes.value;
        lanes.replaceChildren(...value.lanes.map(({ key, label }) => el("option", { value: key }, label)));
        if (value.lanes.some(({ key }) => key === kept)) lanes.value = kept;
        text.value = "";
      }
      setAttribute(text, "placeholder", value.hint);
      current = value;
      fill();
      free();
    };
  }

  window.sparsed.define("talk", mountTalk);
})();
