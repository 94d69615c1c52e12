// The back button leads to the page that was there before, with one press.
//
// A page writes what it shows into its address, and Streamlit makes each such change a step of the browser's history: opening a page
// was two or three steps, all the same to the person, and going back to it made new ones. What changes in the address of a page before
// anything on it was touched therefore takes the place of the step; what a person changes is a step as before.
(() => {
  let touched = false;
  for (const kind of ["pointerdown", "keydown"]) addEventListener(kind, () => { touched = true; }, true);
  addEventListener("popstate", () => { touched = false; }, true);
  const push = history.pushState;
  history.pushState = function (state, title, address) {
    const other = address != null && new URL(address, location.href).pathname !== location.pathname;
    if (!other && !touched) return history.replaceState(state, title, address);
    if (other) touched = false;
    return push.call(this, state, title, address);
  };
})();
