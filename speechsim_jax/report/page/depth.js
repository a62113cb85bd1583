// How similarity moves with depth, and which layers of two models belong together.

// Pairs of models that are compared along their depth: each with the others, or one with itself.
function partners(x) {
  if (page.models.length === 1) return [0];
  return [...state.models].filter((y) => y !== x && axisOf(state.measure).model.includes(y));
}

const placesOf = (axis, model) => [...axis.model.keys()].filter((k) => axis.model[k] === model);

// The scores of representations x with what is matched to them in model y: NaN where there is nothing.
function matched(measure, kind, y, places) {
  return places.map((i) => {
    const j = measure.alignment[kind].at(y, i);
    return {place: j, value: j < 0 ? NaN : measure.values.at(i, j)};
  });
}

function trendSeries(x) {
  const measure = state.measure;
  const axis = axisOf(measure);
  const places = placesOf(axis, x);
  const depths = places.map((i) => axis.depth[i]);
  const kinds = [["best", "solid"], ["same", "dash"]];
  const lines = partners(x).flatMap((y) => kinds.map(([kind, dash]) => {
    const found = matched(measure, kind, y, places);
    const {short, colour, symbol} = page.models[y];
    const texts = found.map(({place, value}, k) => place < 0 ? "" :
      `x: ${plain(label(representation(axis, places[k])))}<br>` +
      `y: ${plain(label(representation(axis, place)))}<br>${measure.name}: <b>${score(value)}</b>`);
    return {
      name: page.models.length > 1 ? `y: ${short}` : short, rank: y, colour, symbol, dash,
      x: depths, y: found.map((one) => one.value), texts,
    };
  }));
  const dashes = ["dot", "dashdot"];
  return [...lines, ...measure.baselines.map((baseline, k) => ({
    name: baseline.name, rank: 1000 + k, colour: GREY, dash: dashes[k % 2], x: depths,
    y: places.map((i) => baseline.values.at(i)),
    texts: places.map((i) => `${plain(baseline.name)}<br><b>${score(baseline.values.at(i))}</b>`),
  }))];
}

const trendModels = () => [...state.models].filter(
  (x) => partners(x).length && placesOf(axisOf(state.measure), x).length > 1);

function drawTrend() {
  const alone = page.models.length === 1;
  const models = trendModels();
  const caption = byId("trend").querySelector("figcaption");
  byId("trend").querySelector(".downloads").hidden = !models.length;
  if (!models.length) {
    Plotly.purge(plotOf("trend"));
    caption.textContent =
      "Curves need a model of two layers or more, and another to compare it with.";
    return;
  }
  drawPanels("trend", models.map((x) => ({
    title: `x: ${page.models[x].short}`, series: trendSeries(x),
  })), {
    keys: [
      {name: alone ? "best other layer" : "best layer of y", dash: "solid"},
      {name: alone ? "next layer" : "layer of y at the same depth", dash: "dash"},
    ],
    xTitle: "relative depth of x's layer", shared: true, most: 2,
  });
  caption.replaceChildren(element("b", {}, state.measure.name),
    " of each layer of x with a model y, against x's relative depth (layer over last layer).");
}

function trendRows() {
  const measure = state.measure;
  const axis = axisOf(measure);
  const rows = [[
    "x_model", "x_layer", "x_depth", "y_model", "best_layer", "best", "same_depth_layer",
    "same_depth",
  ]];
  for (const x of trendModels()) {
    for (const y of partners(x)) {
      const places = placesOf(axis, x);
      const [best, same] = ["best", "same"].map((kind) => matched(measure, kind, y, places));
      places.forEach((i, k) => rows.push([
        page.models[x].name, axis.layer[i], axis.depth[i], page.models[y].name,
        axis.layer[best[k].place] ?? "", best[k].value,
        axis.layer[same[k].place] ?? "", same[k].value,
      ]));
    }
  }
  return rows;
}

function fillAlignmentChoices() {
  for (const id of ["align-x", "align-y"]) {
    byId(id).append(...page.models.map((model, k) => element("option", {value: k}, model.short)));
    byId(id).addEventListener("change", () => {
      const [x, y] = ["align-x", "align-y"].map((each) => Number(byId(each).value));
      if (x === y && page.models.length > 1) {  // no model with itself: the other side gives way
        byId(id === "align-x" ? "align-y" : "align-x").value = (x + 1) % page.models.length;
      }
      drawAlignment();
    });
  }
  byId("align-y").value = Math.min(1, page.models.length - 1);
}

const aligned = () => {
  const [x, y] = ["align-x", "align-y"].map((id) => Number(byId(id).value));
  const axis = axisOf(state.measure);
  return {x, y, axis, rows: placesOf(axis, x), columns: placesOf(axis, y)};
};

// Of scores that lie within so little, the order of layers is that of the noise.
const TOO_CLOSE = 0.01;

function drawAlignment() {
  const measure = state.measure;
  const {x, y, axis, rows, columns} = aligned();
  const kinds = matchKinds();
  const {layout, cell, narrow} = mapLayout(measure, rows, columns, widthOf("match"), 440);
  const at = (kind) => {
    const found = matched(measure, kind, y, rows).map((one, r) => [columns.indexOf(one.place), r]);
    return found.filter(([column]) => column >= 0);
  };
  const line = (kind, style) => ({
    type: "scatter", hoverinfo: "skip", x: at(kind).map((p) => p[0]), y: at(kind).map((p) => p[1]),
    ...style,
  });
  const cells = cellTraces(measure, rows, columns, {
    cell, bar: colourBar(measure.name, narrow), block: true,
  });
  const path = "path" in kinds ? [
    line("path", {mode: "lines", line: {color: "#000", width: 5}}),
    line("path", {mode: "lines", line: {color: "#fff", width: 2.5}}),
  ] : [];
  draw("match", [
    ...cells,
    ...path,
    line("best", {mode: "markers", marker: {
      symbol: "circle", size: Math.max(5, Math.min(cell * 0.5, 11)), color: "#fff",
      line: {color: "#000", width: 1.2}}}),
  ], layout);
  byId("match").querySelector("figcaption").replaceChildren(
    element("b", {}, measure.name),
    ` of ${page.models[x].short} (rows) with ${page.models[y].short}. `,
    `${spreadSaid()} ${blackIs([cells[0].zmin, cells[0].zmax])}`,
    page.models.length === 1 ? "Circles: the best other layer." :
      "Circles: the best layer of y for each layer of x. ",
    "path" in kinds ? "Line: the best choice that never goes back, the monotone path of the " +
      "greatest sum." : "",
    ` Means: ${alignmentMeans(measure, y, rows)}.`);
  const table = makeTable(...alignmentTable(measure, axis, y, rows), {
    write: (value, k) => (k > 0 && k % 2 === 0 ? score(value) : String(value)),
  });
  byId("match-table").replaceChildren(scrolling(table));
}

// The least and the greatest score of the block; without those of layers with themselves.
function spread() {
  const {rows, columns} = aligned();
  const values = rows.flatMap((i) => columns.filter((j) => j !== i).map(
    (j) => state.measure.values.at(i, j))).filter(Number.isFinite);
  return [Math.min(...values), Math.max(...values)];
}

const tooClose = ([low, high]) => high - low < TOO_CLOSE;

function spreadSaid() {
  const [low, high] = spread();
  if (low > high) return "";
  const said = `All scores lie between ${score(low)} and ${score(high)}`;
  return tooClose([low, high])
    ? `${said}: too close together to say which layers belong together, so no path is drawn.`
    : `${said}.`;
}

// How layers are matched here, and what each way is called.
function matchKinds() {
  if (page.models.length === 1) return {best: "best other layers", same: "next layers"};
  const path = tooClose(spread()) ? {} : {path: "along the path"};
  return {best: "best layers", ...path, same: "at the same depth"};
}

function alignmentMeans(measure, y, rows) {
  return Object.entries(matchKinds()).map(([kind, name]) => {
    const found = matched(measure, kind, y, rows).map((one) => one.value).filter(Number.isFinite);
    const mean = found.reduce((sum, value) => sum + value, 0) / found.length;
    return `${name} ${score(mean)}`;
  }).join(", ");
}

function alignmentTable(measure, axis, y, rows) {
  const names = {best: "best", path: "path", same: page.models.length === 1 ? "next" : "same depth"};
  const kinds = Object.keys(matchKinds());
  const found = kinds.map((kind) => matched(measure, kind, y, rows));
  const cells = (k) => found.flatMap((matches) => [
    matches[k].place < 0 ? "–" : axis.layer[matches[k].place], matches[k].value]);
  return [
    ["layer of x", ...kinds.flatMap((kind) => [names[kind], "score"])],
    rows.map((i, k) => [axis.layer[i], ...cells(k)]),
  ];
}

function alignmentRows() {
  const {axis, y, rows} = aligned();
  const [heads, body] = alignmentTable(state.measure, axis, y, rows);
  return [heads, ...body];
}
