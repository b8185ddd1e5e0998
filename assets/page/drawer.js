/* The drawer of settings: opened and closed by its handle, closed by its button and by Escape, and on a phone, where it
   covers the lanes, by Run. */
(() => {
  "use strict";

  const handle = () => document.querySelector(".sd-handle");
  const isOpen = () => handle()?.getAttribute("aria-expanded") === "true";

  function close(focused) {
    if (!isOpen()) return;
    handle().setAttribute("aria-expanded", false);
    if (focused) handle().focus();
  }

  document.addEventListener("click", (event) => {
    if (!(event.target instanceof Element)) return;
    if (event.target.closest(".sd-handle")) handle().setAttribute("aria-expanded", !isOpen());
    if (event.target.closest(".sd-close")) close(true);
    if (event.target.closest("#sd-run") && window.matchMedia("(max-width: 760px)").matches) close(false);
  });
  // Escape in a list of options closes the list, no more.
  document.addEventListener("keydown", (event) => {
    const list = event.target instanceof Element && event.target.matches("#sd-drawer [aria-expanded='true']");
    const inside = event.target instanceof Element && event.target.closest("#sd-drawer, .sd-handle");
    if (event.key === "Escape" && inside && !list) close(true);
  }, true);
})();
