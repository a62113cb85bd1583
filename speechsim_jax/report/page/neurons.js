// Neurons with matches in other models, and the facts of every representation.

const others = (x) => [...page.models.keys()].filter((y) => y !== x || page.models.length === 1);

function fillNeuronChoices() {
  byId("neuron-model").append(
    ...page.models.map((model, k) => element("option", {value: k}, model.short)));
  byId("neuron-model").addEventListener("change", fillNeuronLayers);
  byId("neuron-layer").addEventListener("change", drawNeurons);
  fillNeuronLayers();
}

function fillNeuronLayers() {
  const axis = page.axes.representation;
  const options = placesOf(axis, Number(byId("neuron-model").value)).map((i) => element(
    "option", {value: i}, String(axis.layer[i])));
  byId("neuron-layer").replaceChildren(element("option", {value: "all"}, "all"), ...options);
  byId("neuron-layer").selectedIndex = Math.ceil(options.length / 2);
  drawNeurons();
}

// Rows: layer, neuron, smallest and largest over the other models; by model the score and where.
function neuronRows() {
  const axis = page.axes.representation;
  const {neuron, value, place, winner} = page.neurons;
  const model = Number(byId("neuron-model").value);
  const layer = byId("neuron-layer").value;
  const representations = layer === "all" ? placesOf(axis, model) : [Number(layer)];
  const rows = [];
  for (const i of representations) {
    for (let k = 0; k < neuron.shape[1]; k++) {
      if (neuron.at(i, k) < 0) continue;
      const scores = others(model).map((y) => value.at(i, y, k));
      const finite = scores.filter(Number.isFinite);
      rows.push([
        axis.layer[i], neuron.at(i, k), Math.min(...finite), Math.max(...finite),
        ...others(model).flatMap((y, o) => [scores[o], place.at(i, y, k) < 0 ? "–" :
          `${axis.layer[place.at(i, y, k)]}.${winner.at(i, y, k)}`]),
      ]);
    }
  }
  const heads = ["layer", "neuron", "smallest", "largest",
    ...others(model).flatMap((y) => [page.models[y].short, "layer.neuron"])];
  rows.sort((a, b) => b[2] - a[2]);
  return [heads, rows.slice(0, neuron.shape[1])];
}

function drawNeurons() {
  const write = (value, k) =>
    (k >= 2 && typeof value === "number" ? formatScore(value) : String(value));
  const [heads, rows] = neuronRows();
  // "layer.neuron" is text, not a number: 7.53 comes after 7.6.
  const table = makeTable(heads, rows, {write, numeric: (k) => k < 4 || k % 2 === 0});
  sortable(table);
  byId("neuron-table").replaceChildren(
    element("p", {class: "quiet"}, `The ${rows.length} neurons whose smallest best |correlation| ` +
      "over the other models is greatest; next to each model, layer and neuron of the best match."),
    scrolling(table, true));
}

function factPanels() {
  const axis = page.axes.representation;
  const shown = [...state.models];
  const series = (values, name, dash) => shown.map((model) => {
    const places = placesOf(axis, model);
    const {short, colour, symbol} = page.models[model];
    return {
      name: short, rank: model, colour, symbol, dash,
      x: places.map((i) => axis.depth[i]), y: places.map(values),
      texts: places.map((i) => `${plain(label(representation(axis, i)))}<br>${plain(name)}: ` +
        `<b>${formatNumber(values(i), false)}</b>`),
    };
  });
  const overOthers = (matrix) => (i) => {
    const values = [...axis.model.keys()].filter(
      (j) => (page.models.length > 1 ? axis.model[j] !== axis.model[i] : j !== i)).map(
      (j) => matrix.at(i, j)).filter(Number.isFinite);
    return values.reduce((sum, value) => sum + value, 0) / values.length;
  };
  const facts = page.facts.filter((fact) => fact.name !== "width").map((fact) => ({
    title: fact.name, logarithmic: fact.logarithmic, integer: fact.integer,
    series: series((i) => fact.values.at(i), fact.name, "solid"),
  }));
  const floors = page.floors.map((floor) => ({
    title: floor.values ? `${floor.name}, its floor` : `floor of ${floor.name}`,
    series: [
      ...(floor.values ? series(overOthers(floor.values), floor.name, "solid") : []),
      ...series(overOthers(floor.floor), `floor of ${floor.name}`, "dash"),
    ],
  }));
  return [...facts, ...floors];
}

function drawFacts() {
  const panels = factPanels();
  drawPanels("facts", panels, {
    keys: page.floors.length ? [{name: "floor of unrelated representations", dash: "dash"}] : [],
    xTitle: "relative depth of the layer",
  });
  byId("facts").querySelector("figcaption").textContent =
    "Of every representation, against its relative depth. Scores and floors are means over the " +
    "representations of the other models; the floors hold for independent rows.";
}

function factRows() {
  const rows = [["figure", "model", "line", "depth", "value"]];
  for (const panel of factPanels()) {
    for (const curve of panel.series) {
      curve.x.forEach((depth, k) => rows.push([
        panel.title, curve.name, curve.dash === "solid" ? "value" : "floor", depth, curve.y[k]]));
    }
  }
  return rows;
}
