"use strict";
// What the page does beyond links and forms. Without it everything can still be read and done.

// A poll that brings nothing new changes nothing, so that focus and scrolling stay; one of a hidden
// page need not be sent.
let shown = "";
document.addEventListener("htmx:beforeRequest", (event) => {
  if (document.hidden || document.querySelector("#live :focus-within, #live details[open]")) event.preventDefault();
});
document.addEventListener("htmx:beforeSwap", (event) => {
  const text = event.detail.xhr.responseText;
  if (event.detail.xhr.status !== 200 || text === shown) event.detail.shouldSwap = false;
  else shown = text;
});

// Arrow keys step through pictures and pages, Escape goes up.
const KEYS = { ArrowLeft: "prev", ArrowRight: "next", Escape: "up" };
document.addEventListener("keydown", (event) => {
  const busy = event.target.closest("input, textarea, select, pre, video");
  if (busy || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  const link = KEYS[event.key] && document.querySelector(`a[rel="${KEYS[event.key]}"]`);
  if (link) link.click();
});

for (const button of document.querySelectorAll("button[data-copy]")) {
  const source = document.getElementById(button.dataset.copy);
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch { // not over plain HTTP: selected, it can be copied by hand
      getSelection().selectAllChildren(source);
      return;
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}
