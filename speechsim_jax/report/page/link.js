// Cells by the page's address: "#a/3,b/7" is layer 3 of a (x) with layer 7 of b (y).

const nameOf = ({model, layer}) => `${page.models[model].name}/${layer}`;

// Names are encoded but for "/", which an address may hold.
function linkOf(x, y) {
  const [from, to] = [x, y].map(
    (name) => encodeURIComponent(nameOf(name)).replaceAll("%2F", "/"));
  return `#${from},${to}`;
}

// The cell [x, y] that an address names; null for anything else.
function cellOfLink(hash) {
  const parts = hash.slice(1).split(",");
  if (parts.length !== 2) return null;
  let names;
  try {
    names = parts.map(decodeURIComponent);
  } catch {
    return null;  // no encoding of a text
  }
  const axis = page.axes.representation;
  const known = [...axis.model.keys()].map((place) => representation(axis, place));
  const cell = names.map((name) => known.find((one) => nameOf(one) === name));
  return cell.includes(undefined) ? null : cell;
}

const isSelected = (cell) => [state.x, state.y].every(
  ({model, layer}, k) => model === cell[k].model && layer === cell[k].layer);

// Select the cell of an address and bring it into view; without one, that of the start.
function followLink() {
  const cell = cellOfLink(location.hash) ?? (location.hash ? null : state.first);
  if (!cell || isSelected(cell)) return;
  selectPair(...cell);
  if (location.hash) showPair();
}

const showPair = () => byId("reading").scrollIntoView({block: "center"});

// Put the selected cell into the address, as a step to come back to.
function writeLink() {
  const link = linkOf(state.x, state.y);
  if (location.hash !== link) location.hash = link;
}

// The same without such a step, for a walk with the arrow keys.
function rewriteLink() {
  const link = linkOf(state.x, state.y);
  if (location.hash !== link) location.replace(link);
}

function listenToLinks() {
  addEventListener("hashchange", followLink);
  document.addEventListener("click", ({target}) => {
    const link = target.closest?.('a[href^="#"]');
    const cell = link && cellOfLink(link.hash);
    if (!cell) return;
    selectPair(...cell);
    showPair();
  });
  const cell = cellOfLink(location.hash);
  if (cell) showPair();
}
