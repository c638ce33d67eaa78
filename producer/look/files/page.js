"use strict";
// What the page does beyond links and forms. Without it everything can still be read and done.

// A poll that brings nothing new changes nothing; one of a hidden page need not be sent. What had
// the focus has it again, and what was open stays open.
const live = () => document.getElementById("live");
const open = () => [...live().querySelectorAll("details")].map((one) => one.open);
let shown = "", focus = null, opened = [];
document.addEventListener("htmx:beforeRequest", (event) => {
  if (document.hidden) event.preventDefault();
});
document.addEventListener("htmx:beforeSwap", (event) => {
  const { xhr } = event.detail;
  if (xhr.status !== 200 || xhr.responseText === shown || live().contains(getSelection().focusNode) && !getSelection().isCollapsed || live().querySelector("input:focus, select:focus")) {
    event.detail.shouldSwap = false;
    return;
  }
  shown = xhr.responseText;
  focus = live().contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  opened = open();
});
document.addEventListener("htmx:afterSettle", () => {
  live().querySelectorAll("details").forEach((one, number) => { one.open = opened[number] ?? false; });
  if (focus) live().querySelector(`a[href="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
});

// A form that takes a while says so, and is sent once.
document.addEventListener("submit", (event) => {
  const button = event.target.querySelector("button.main");
  if (!event.target.dataset.wait || !button) return;
  if (button.ariaDisabled === "true") event.preventDefault();
  button.ariaDisabled = "true";
  button.dataset.text = button.textContent;
  button.textContent = event.target.dataset.wait;
});
addEventListener("pageshow", () => {
  for (const button of document.querySelectorAll("button[data-text]")) {
    button.ariaDisabled = null;
    button.textContent = button.dataset.text;
  }
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

// Two pictures side by side go one over the other, with a slider between them.
for (const button of document.querySelectorAll("button.over")) {
  const pair = document.querySelector(".beside"), slider = document.getElementById("slider");
  const slide = () => { pair.style.setProperty("--at", `${slider.value}%`); };
  const lay = (over) => {
    pair.classList.toggle("over", over);
    button.ariaPressed = String(over);
    slider.parentElement.hidden = !over;
    slide();
  };
  button.hidden = false;
  lay(sessionStorage.over === "true"); // whoever steps on looks at the next pair in the same way
  button.addEventListener("click", () => {
    lay(button.ariaPressed !== "true");
    sessionStorage.over = button.ariaPressed;
    if (button.ariaPressed === "true") slider.focus();
  });
  slider.addEventListener("input", slide);
}
