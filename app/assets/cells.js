// Enter keeps what was typed into a cell of a table, however busy the browser is.
//
// The grid that Streamlit draws (glide-data-grid) closes a cell's field in a timer of each key: Enter says that the field is to be
// closed, the first timer that runs afterwards closes it, and only Enter's own takes the number along. While the page is drawn anew
// the timer of the last digit comes after Enter, and the number is lost. A click outside closes the field at once, number and all:
// so Enter and Tab are made such a click, and then move on as they would have.
if (!window.cellsKeepWhatIsTyped) {
  window.cellsKeepWhatIsTyped = true;
  const onwards = { Enter: { key: "ArrowDown", keyCode: 40 }, Tab: { key: "ArrowRight", keyCode: 39 } };
  const inField = (node) => node instanceof HTMLInputElement && node.closest("#portal .gdg-clip-region");
  document.addEventListener("keydown", (event) => {
    const move = onwards[event.key];
    if (!move || event.shiftKey || event.isComposing || !inField(event.target)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    document.body.dispatchEvent(new PointerEvent("pointerdown", { bubbles: true }));
    // After the field is gone from the page, which is a microtask of its own.
    queueMicrotask(() => document.activeElement?.dispatchEvent(new KeyboardEvent("keydown", { ...move, bubbles: true, cancelable: true })));
  }, true);
}
