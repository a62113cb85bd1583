// How similarity changes with depth, and which layers of two models correspond.

// The models that x is compared with along its depth: the others, or itself if it is alone.
function partners(x) {
  if (page.models.length === 1) return [0];
  return [...state.models].filter((y) => y !== x && axisOf(state.measure).model.includes(y));
}

const placesOf = (axis, model) => [...axis.model.keys()].filter((k) => axis.model[k] === model);

// The layers of model y that match layers x, and the scores of both; NaN where there is no match.
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
    const matches = matched(measure, kind, y, places);
    const {short, colour, symbol} = page.models[y];
    const texts = matches.map(({place, value}, k) => place < 0 ? "" :
      `x: ${plain(label(representation(axis, places[k])))}<br>` +
      `y: ${plain(label(representation(axis, place)))}<br>` +
      `${plain(measure.name)}: <b>${formatScore(value)}</b>`);
    return {
      name: page.models.length > 1 ? `y: ${short}` : short, rank: y, colour, symbol, dash,
      x: depths, y: matches.map((match) => match.value), texts,
    };
  }));
  const dashes = ["dot", "dashdot"];
  return [...lines, ...measure.baselines.map((baseline, k) => ({
    name: baseline.name, rank: 1000 + k, colour: GREY, dash: dashes[k % 2], x: depths,
    y: places.map((i) => baseline.values.at(i)),
    texts: places.map((i) =>
      `${plain(baseline.name)}<br><b>${formatScore(baseline.values.at(i))}</b>`),
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
    " of each layer of x with a model y, against x's relative depth (layer over its transformer layers).");
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
      const [x, y] = ["align-x", "align-y"].map((name) => Number(byId(name).value));
      if (x === y && page.models.length > 1) {  // no model with itself: change the other side
        byId(id === "align-x" ? "align-y" : "align-x").value = (x + 1) % page.models.length;
      }
      drawAlignment();
    });
  }
  byId("align-y").value = Math.min(1, page.models.length - 1);
}

const alignmentSelection = () => {
  const [x, y] = ["align-x", "align-y"].map((id) => Number(byId(id).value));
  const axis = axisOf(state.measure);
  return {x, y, axis, rows: placesOf(axis, x), columns: placesOf(axis, y)};
};

// In a range of scores this small the order of the layers is noise.
const TOO_CLOSE = 0.01;

function drawAlignment() {
  const measure = state.measure;
  const {x, y, axis, rows, columns} = alignmentSelection();
  const kinds = matchKinds();
  const {layout, cell, narrow} = mapLayout(measure, rows, columns, widthOf("match"), printing ? 340 : 440);
  const at = (kind) => {
    const points = matched(measure, kind, y, rows).map(
      ({place}, row) => [columns.indexOf(place), row]);
    return points.filter(([column]) => column >= 0);
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
    `${scoreRangeText()} ${colourRangeText([cells[0].zmin, cells[0].zmax])}`,
    page.models.length === 1 ? "Circles: the best other layer." :
      "Circles: the best layer of y for each layer of x. ",
    "path" in kinds ? "Line: the best choice that never goes back, the monotone path of the " +
      "greatest sum." : "",
    ` Means: ${alignmentMeans(measure, y, rows)}.`);
  const table = makeTable(...alignmentTable(measure, axis, y, rows), {
    write: (value, k) => (k > 0 && k % 2 === 0 ? formatScore(value) : String(value)),
  });
  byId("match-table").replaceChildren(scrolling(table));
}

// The least and the greatest score of the block, without those of layers with themselves.
function scoreRange() {
  const {rows, columns} = alignmentSelection();
  const values = rows.flatMap((i) => columns.filter((j) => j !== i).map(
    (j) => state.measure.values.at(i, j))).filter(Number.isFinite);
  return [Math.min(...values), Math.max(...values)];
}

const tooClose = ([low, high]) => high - low < TOO_CLOSE;

function scoreRangeText() {
  const [low, high] = scoreRange();
  if (low > high) return "";
  const text = `All scores lie between ${formatScore(low)} and ${formatScore(high)}`;
  return tooClose([low, high])
    ? `${text}: too close together to tell which layers correspond, so no path is drawn.`
    : `${text}.`;
}

// The rules by which layers are matched here, and their names.
function matchKinds() {
  if (page.models.length === 1) return {best: "best other layers", same: "next layers"};
  const path = tooClose(scoreRange()) ? {} : {path: "along the path"};
  return {best: "best layers", ...path, same: "at the same depth"};
}

function alignmentMeans(measure, y, rows) {
  return Object.entries(matchKinds()).map(([kind, name]) => {
    const scores = matched(measure, kind, y, rows).map(({value}) => value).filter(Number.isFinite);
    const mean = scores.reduce((sum, value) => sum + value, 0) / scores.length;
    return `${name} ${formatScore(mean)}`;
  }).join(", ");
}

function alignmentTable(measure, axis, y, rows) {
  const same = page.models.length === 1 ? "next" : "same depth";
  const names = {best: "best", path: "path", same};
  const kinds = Object.keys(matchKinds());
  const byKind = kinds.map((kind) => matched(measure, kind, y, rows));
  const cells = (k) => byKind.flatMap((matches) => [
    matches[k].place < 0 ? "–" : axis.layer[matches[k].place], matches[k].value]);
  return [
    ["layer of x", ...kinds.flatMap((kind) => [names[kind], "score"])],
    rows.map((i, k) => [axis.layer[i], ...cells(k)]),
  ];
}

function alignmentRows() {
  const {axis, y, rows} = alignmentSelection();
  const [heads, body] = alignmentTable(state.measure, axis, y, rows);
  return [heads, ...body];
}
