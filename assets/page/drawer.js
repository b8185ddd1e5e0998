/* The drawer of settings: it is closed by its button, by Escape, and by a press beside it. */
(() => {
  "use strict";

  const handle = () => document.querySelector("#sd-settings > button.open");

  function close(focused) {
    const open = handle();
    if (!open) return;
    open.click();
    if (focused) open.focus();
  }

  document.addEventListener("click", (event) => {
    if (event.target instanceof Element && event.target.closest(".sd-close")) close(true);
  });
  // Escape in a list of options closes the list, no more.
  document.addEventListener("keydown", (event) => {
    const inside = event.target instanceof Element && event.target.closest("#sd-settings");
    if (event.key === "Escape" && inside && event.target.getAttribute("aria-expanded") !== "true") close(true);
  }, true);
})();
