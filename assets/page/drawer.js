/* The drawer of settings: closed by its button and by Escape, and on a phone, where it covers the
   lanes, by Run. */
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
    if (!(event.target instanceof Element)) return;
    if (event.target.closest(".sd-close")) close(true);
    if (event.target.closest("#sd-run") && window.matchMedia("(max-width: 760px)").matches) close(false);
  });
  // Escape in a list of options closes the list, no more.
  document.addEventListener("keydown", (event) => {
    const inside = event.target instanceof Element && event.target.closest("#sd-settings");
    if (event.key === "Escape" && inside && event.target.getAttribute("aria-expanded") !== "true") close(true);
  }, true);
})();
