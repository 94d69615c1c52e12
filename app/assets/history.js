// The back button leads to the page that was there before, with one press.
//
// On a click on the name of another page Streamlit first takes what was typed out of the address, then puts back what all pages share,
// and then goes on: three steps of the browser's history, the first two of the page that was left, without what stood in its address.
// Here the page that is left keeps its address, and what a page writes into its own before anything on it was touched takes the place of
// its step. What a person changes on a page is a step as Streamlit has it.
(() => {
  const LINKS = "[data-testid=stTopNavLink], [data-testid=stPageLink-NavLink]";
  let touched = false;
  let left = null; // address and state of the page that a link leads away from
  for (const kind of ["pointerdown", "keydown"]) addEventListener(kind, () => { touched = true; left = null; }, true);
  addEventListener("click", (event) => {
    if (!event.target.closest?.(LINKS) || event.ctrlKey || event.metaKey || event.shiftKey) return;
    touched = false;
    left = { address: location.href, state: history.state };
  }, true);
  addEventListener("popstate", () => { touched = false; left = null; }, true);
  const push = history.pushState;
  history.pushState = function (state, title, address) {
    const other = address != null && new URL(address, location.href).pathname !== location.pathname;
    if (!other && !touched) return history.replaceState(state, title, address);
    if (other && left) history.replaceState(left.state, "", left.address);
    if (other) { touched = false; left = null; }
    return push.call(this, state, title, address);
  };
})();
