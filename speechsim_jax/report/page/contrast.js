// Whether one cell of the map differs from another, by the interval of their difference.

// The place of a pair (a, b), a < b, among all pairs of so many.
const pairPlace = (a, b, count) => a * count - (a * (a + 1)) / 2 + b - a - 1;

function placeOfPair(a, b, count) {
  return a < b ? pairPlace(a, b, count) : pairPlace(b, a, count);
}

// The cell among those that the page has pairs of: a symmetric measure has (x, y) with x <= y.
function cellPlace(measure, [x, y], size) {
  if (measure.directed) return x * size + y;
  const [low, high] = x <= y ? [x, y] : [y, x];
  return low * size - (low * (low - 1)) / 2 + high - low;
}

const half95 = (numbers, ...at) => Math.exp(numbers.at(...at));

// Half the 95 % interval of the difference of two cells, {half, exact}; exact is false where the
// page has only the intervals of the cells themselves, whose sum it cannot exceed by much.
function halfOfDifference(measure, a, b) {
  const size = measure.values.shape[0];
  const {pairs} = measure;
  if (pairs?.kind === "all") {
    const count = measure.directed ? size * size : (size * (size + 1)) / 2;
    const [i, j] = [a, b].map((cell) => cellPlace(measure, cell, size));
    return {half: i === j ? 0 : half95(pairs.of, placeOfPair(i, j, count)), exact: true};
  }
  if (pairs) {
    const [[ax, ay], [bx, by]] = [a, b];
    const orders = measure.directed ? [[ax, ay, bx, by]]
      : [[ax, ay, bx, by], [ax, ay, by, bx], [ay, ax, bx, by], [ay, ax, by, bx]];
    for (const [x, y, x2, y2] of orders) {
      if (x === x2) {
        return {half: y === y2 ? 0 : half95(pairs.of, x, placeOfPair(y, y2, size)), exact: true};
      }
      if (measure.directed && y === y2) {
        return {half: half95(pairs.columns, y, placeOfPair(x, x2, size)), exact: true};
      }
    }
  }
  return {half: measure.half.at(...a) + measure.half.at(...b), exact: false};
}

// {difference, half, exact, differs} of two cells, as places; differs is null where not known.
function contrastOf(measure, a, b) {
  const difference = measure.values.at(...a) - measure.values.at(...b);
  const {half, exact} = halfOfDifference(measure, a, b);
  const beyond = Number.isFinite(half) && Math.abs(difference) > half;
  const known = Number.isFinite(difference) && Number.isFinite(half);
  return {difference, half, exact, differs: beyond || (known && exact ? beyond : null)};
}

function contrastText(measure, a, b) {
  const {difference, half, exact, differs} = contrastOf(measure, a, b);
  if (!Number.isFinite(difference)) return "One of the two has no score.";
  const interval = Number.isFinite(half) ? ` ± ${exact ? "" : "at most "}${half.toFixed(4)}` : "";
  const verdict = {
    true: "They differ.",
    false: "They are not found to differ.",
    null: "Whether they differ is not on this page: result.contrast knows.",
  }[differs];
  return `${measure.name} of this cell minus that of the kept one: ${signed(difference, 4)}${interval} ` +
    `(95 % interval of the difference). ${verdict}`;
}

const sameCell = () => state.kept && [["x", 0], ["y", 1]].every(([side, k]) =>
  state.kept[k].model === state[side].model && state.kept[k].layer === state[side].layer);

function drawContrast() {
  const place = byId("contrast");
  place.hidden = !state.measure.half;
  const kept = state.kept;
  byId("keep").textContent = kept ? "Let the kept cell go" : "Keep this cell to compare others";
  const axis = axisOf(state.measure);
  const [here, there] = [[state.x, state.y], kept ?? []].map(
    (cell) => cell.map((name) => placeOf(axis, name)));
  const text = byId("difference");
  if (!kept) text.textContent = "";
  else if (here.includes(-1) || there.includes(-1)) text.textContent = "No attention there.";
  else {
    const cell = `x ${label(kept[0])}; y ${label(kept[1])}`;
    text.textContent = sameCell() ? `Kept: ${cell}. Click another cell.`
      : `Kept: ${cell}. ${contrastText(state.measure, here, there)}`;
  }
}

function listenToKeep() {
  byId("keep").addEventListener("click", () => {
    state.kept = state.kept ? null : [state.x, state.y];
    markCell();
    drawContrast();
  });
}
