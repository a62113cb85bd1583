// One cell of the map: everything that the page has about a pair of representations.

function fillPairChoices() {
  for (const side of ["x", "y"]) {
    const axis = page.axes.representation;
    const groups = blocksOf(axis, [...axis.model.keys()]).map(({model, start, stop}) =>
      element("optgroup", {label: page.models[model].short},
        ...Array.from({length: stop - start}, (_, k) => element(
          "option", {value: start + k}, label(representation(axis, start + k))))));
    const select = byId(side);
    select.append(...groups);
    select.addEventListener("change", () => selectPair(
      ...["x", "y"].map((id) => representation(axis, Number(byId(id).value))), writeLink));
  }
}

// The selected pair's places on an axis; null if one is not there: layer 0 has no attention.
function selectedPlaces(axis) {
  const places = [state.x, state.y].map((name) => placeOf(axis, name));
  return places.includes(-1) ? null : places;
}

function drawPair() {
  const places = selectedPlaces(page.axes.representation);
  [byId("x").value, byId("y").value] = places;
  const measured = selectedPlaces(axisOf(state.measure));
  const value = measured ? scoreText(state.measure, measured) : "no attention";
  byId("reading").textContent =
    `x ${label(state.x)}; y ${label(state.y)}: ${state.measure.name} ${value}`;
  byId("link").href = linkOf(state.x, state.y);
  drawContrast();
  drawScores(places);
  drawLayers(places);
  drawCorrelations(places);
  drawMatches(places);
  drawHeads();
  drawInfluential(places);
}

// A score and half its 95 % interval, where that is known.
function scoreText(measure, places) {
  const text = formatScore(measure.values.at(...places));
  const half = measure.half ? measure.half.at(...places) : NaN;
  return Number.isFinite(half) ? `${text} ± ${half.toFixed(4)}` : text;
}

function drawScores(pair) {
  const rows = [];
  for (const measure of page.measures) {
    const places = selectedPlaces(axisOf(measure));
    if (!places) continue;
    const back = places.toReversed();
    rows.push([measure.name, scoreText(measure, places),
      measure.directed ? scoreText(measure, back) : "same"]);
    for (const {name, values} of measure.further) {
      rows.push([name, values.at(...places), values.at(...back)]);
    }
  }
  for (const floor of page.floors) {
    rows.push([`floor of ${floor.name}`, floor.floor.at(...pair), ""]);
  }
  const write = (value) => (typeof value === "number" ? formatScore(value) : value);
  const table = makeTable(["measure", "x by y", "y by x"], rows, {numeric: (k) => k > 0, write});
  const current = rows.findIndex(([name]) => name === state.measure.name);
  if (current >= 0) table.tBodies[0].rows[current].classList.add("selected");
  byId("scores").replaceChildren(scrolling(table));
}

function drawLayers(places) {
  if (!page.facts.length) return;
  const rows = page.facts.map((fact) => [
    fact.name, ...places.map((place) => formatNumber(fact.values.at(place), fact.integer))]);
  const table = makeTable(["layer", "x", "y"], rows, {numeric: (k) => k > 0});
  byId("layers").replaceChildren(element("h3", {}, "Layer statistics"), scrolling(table));
}

// [[number of the canonical correlation from 1 on, its value]], without repetitions.
function correlationsOf([i, j]) {
  const count = page.correlations.count.at(i, j);
  const steps = page.correlations.values.shape[2];
  const correlations = new Map();
  for (let k = 0; k < steps && count; k++) {
    const number = 1 + Math.round(k * (count - 1) / Math.max(steps - 1, 1));
    correlations.set(number, page.correlations.values.at(i, j, k));
  }
  return [...correlations];
}

function drawCorrelations(places) {
  if (!page.correlations) return;
  const points = correlationsOf(places);
  const style = {linecolor: GREY, gridcolor: "#e5e5e5", zeroline: false, fixedrange: true};
  draw("correlations", [{
    type: "scatter", mode: "lines+markers", x: points.map((p) => p[0]), y: points.map((p) => p[1]),
    line: {color: INK, width: 1.2}, marker: {size: 4, color: INK},
    hovertemplate: "direction %{x}: <b>%{y:.4f}</b><extra></extra>",
  }], {
    width: widthOf("correlations"), height: 240, margin: {l: 40, r: 8, t: 8, b: 40},
    xaxis: {...style, title: {text: "direction", standoff: 6}, rangemode: "tozero"},
    yaxis: {...style, range: [-0.02, 1.02], nticks: 6},
  });
  byId("correlations").querySelector("figcaption").textContent = `${points.length} of ` +
    `${page.correlations.count.at(...places)} correlations of the directions that svcca compares.`;
}

function drawMatches(places) {
  if (!page.matches) return;
  byId("matches").querySelector(".content").replaceChildren(scrolling(
    makeTable(...matchRows(places), {write: thirdIsScore})));
}

function matchRows(places) {
  const rows = [];
  for (let k = 0; k < page.matches.neuron.shape[2]; k++) {
    const [neuron, match, corr] = ["neuron", "match", "corr"].map(
      (name) => page.matches[name].at(...places, k));
    if (neuron >= 0) rows.push([neuron, match < 0 ? "none" : match, corr]);
  }
  return [["neuron of x", "neuron of y", "|correlation|"], rows];
}

const thirdIsScore = (value, column) => (column === 2 ? formatScore(value) : String(value));
const missing = (text) => element("p", {class: "missing"}, text);

// The clusters that move the score of the selected measure most.
function drawInfluential([i, j]) {
  const place = byId("influential");
  const of = page.influential?.of[state.measure.name];
  if (!page.influential) return;
  const {kind, names} = page.influential;
  place.querySelector("h3").textContent = `What moves ${state.measure.name} most (${kind}s)`;
  const rows = [];
  for (let k = 0; of && k < of.cluster.shape[0]; k++) {
    const moved = of.moved.at(k, i, j);
    if (moved !== 0 && Number.isFinite(moved)) rows.push([names[of.cluster.at(k, i, j)], moved]);
  }
  const write = (value, column) => (column === 1 ? signed(value, 5) : value);
  place.querySelector(".content").replaceChildren(rows.length
    ? scrolling(makeTable([kind, "moves the score by"], rows, {numeric: (k) => k > 0, write}))
    : missing("Nothing is known to move this score."));
}

const signed = (value, digits) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;

// The selected measure if it is of heads, else the first that is.
const headMeasure = () =>
  (state.measure.heads ? state.measure : page.measures.find((measure) => measure.heads));

function drawHeads() {
  const measure = headMeasure();
  if (!measure) return;
  const places = selectedPlaces(page.axes.attention);
  const place = byId("heads").querySelector(".content");
  byId("heads").querySelector("h3").textContent = `Head matches (${measure.name})`;
  place.replaceChildren(places
    ? scrolling(makeTable(...headRows(places), {write: thirdIsScore}))
    : missing("One of these layers has no attention: layer 0 is the transformer's input."));
}

function headRows(places) {
  const {best, match} = headMeasure().heads;
  const rows = [];
  for (let head = 0; head < best.shape[2]; head++) {
    const other = match.at(...places, head);
    if (other >= 0) rows.push([head, other, best.at(...places, head)]);
  }
  return [["head of x", "best head of y", "similarity"], rows];
}
