// The heat map of a measure over all representations, and the selection of a cell on it.

const representation = (axis, index) => ({model: axis.model[index], layer: axis.layer[index]});
const label = ({model, layer}) => `${page.models[model].short}, layer ${layer}`;
const axisOf = (measure) => page.axes[measure.axis];

function placeOf(axis, {model, layer}) {
  return axis.model.findIndex((other, k) => other === model && axis.layer[k] === layer);
}

// The representations of the models that are shown.
function shownPlaces(axis) {
  return [...axis.model.keys()].filter((k) => state.models.has(axis.model[k]));
}

// Runs of one model: [{model, start, stop}], in places along the map.
function blocksOf(axis, places) {
  const blocks = [];
  places.forEach((place, k) => {
    if (!k || axis.model[place] !== blocks.at(-1).model) {
      blocks.push({model: axis.model[place], start: k});
    }
    blocks.at(-1).stop = k + 1;
  });
  return blocks;
}

// Some layers of every block: its first, and multiples of a step for which there is room.
function ticksOf(axis, places, blocks, cell) {
  if (blocks.length === places.length) return [[], []];
  const step = [1, 2, 3, 4, 6, 12, 24, 48].find((s) => s * cell >= 18) ?? 48;
  const ticks = [];
  const fits = (k) => ticks.every((other) => Math.abs(other - k) * cell >= 14);
  for (const {start} of blocks) if (fits(start)) ticks.push(start);
  places.forEach((place, k) => {
    if (axis.layer[place] % step === 0 && fits(k)) ticks.push(k);
  });
  return [ticks, ticks.map((k) => String(axis.layer[places[k]]))];
}

// A block has limits of its own: in those of the full map its structure would not be seen.
function colourLimits(measure, cells, block) {
  if (state.colours === "range") return measure.range;
  if (state.colours === "measure" && !block) return measure.limits;
  const finite = cells.flat().filter(Number.isFinite);
  if (!finite.length) return [0, 1];
  const [low, high] = [Math.min(...finite), Math.max(...finite)];
  return low < high ? [low, high] : [low - 0.005, high + 0.005];
}

// The range of the colours for the caption, unless black, the lowest colour, is 0.
function colourRangeText([low, high]) {
  const short = (value) => String(Number(value.toPrecision(4))).replace("-", "−");
  return low === 0 ? "" : `Colours from ${short(low)} (black) to ${short(high)}. `;
}

// Traces of a map: its cells, and crosses where these are not defined.
function cellTraces(measure, rows, columns, {cell, bar, block = false}) {
  const axis = axisOf(measure);
  const z = rows.map((i) => columns.map((j) => measure.values.at(i, j)));
  const text = rows.map((i, r) => columns.map((j, c) =>
    `x: ${plain(label(representation(axis, i)))}<br>` +
    `y: ${plain(label(representation(axis, j)))}<br>` +
    `${plain(measure.name)}: <b>${Number.isFinite(z[r][c]) ? formatScore(z[r][c]) : "not defined"}</b>`));
  const [zmin, zmax] = colourLimits(measure, z, block);
  const stops = page.colours.map((colour, k) => [k / (page.colours.length - 1), colour]);
  const traces = [{
    type: "heatmap", z, text, hoverinfo: "text", hoverongaps: true, zmin, zmax,
    colorscale: stops, colorbar: bar, showscale: Boolean(bar),
  }];
  const holes = z.flatMap((row, r) => row.flatMap((v, c) => (Number.isFinite(v) ? [] : [[c, r]])));
  if (holes.length) {
    traces.push({
      type: "scatter", mode: "markers", x: holes.map((h) => h[0]), y: holes.map((h) => h[1]),
      hoverinfo: "skip",
      marker: {symbol: "x-thin", size: Math.min(cell * 0.6, 8), line: {color: GREY, width: 1}},
    });
  }
  if (measure.marks) {
    const dots = rows.flatMap((i, r) => columns.flatMap((j, c) =>
      (measure.marks.cells.at(i, j) === 1 && Number.isFinite(z[r][c]) ? [[c, r]] : [])));
    traces.push({
      type: "scatter", mode: "markers", x: dots.map((d) => d[0]), y: dots.map((d) => d[1]),
      hoverinfo: "skip",
      marker: {
        symbol: "circle", size: Math.max(2.5, Math.min(cell * 0.35, 7)), color: "#000",
        line: {color: "#fff", width: cell < 8 ? 0.5 : 1},
      },
    });
  }
  return traces;
}

function colourBar(title, horizontal) {
  const bar = {
    thickness: 10, outlinewidth: 0.5, outlinecolor: GREY, ticks: "outside", ticklen: 3, nticks: 6,
    tickfont: {size: 10},
  };
  if (!horizontal) {
    return {...bar, len: 1, lenmode: "fraction", x: 1, xpad: 10, ypad: 0, y: 0.5,
      title: {text: plain(title), side: "right", font: {size: 11}}};
  }
  return {...bar, orientation: "h", len: 1, lenmode: "fraction", x: 0.5, xpad: 0, y: 1,
    yanchor: "bottom", ypad: 6, title: {text: plain(title), side: "top", font: {size: 11}}};
}

// Lines between the models' blocks, white on every colour of the map.
function separators(rowBlocks, columnBlocks, rows, columns) {
  if (rowBlocks.length > 12 && rowBlocks.length === rows) return [];
  const line = {color: "#fff", width: 1.5};
  return [
    ...rowBlocks.slice(1).map(({start}) => ({
      type: "line", x0: -0.5, x1: columns - 0.5, y0: start - 0.5, y1: start - 0.5, line})),
    ...columnBlocks.slice(1).map(({start}) => ({
      type: "line", y0: -0.5, y1: rows - 0.5, x0: start - 0.5, x1: start - 0.5, line})),
  ];
}

// The labels of the blocks: the models' names if all of them have room, else their letters.
function blockTexts(blocks, cell, lines) {
  const names = blocks.map(({model, start, stop}) =>
    fitName(page.models[model].short, (stop - start) * cell - 6, 11, lines));
  return names.includes(null) ? blocks.map(({model}) => page.models[model].letter) : names;
}

// Annotations with the texts at their blocks, rotated on the left, horizontal below.
function blockNames(blocks, texts, cell, offset, upright) {
  const every = Math.ceil(14 / Math.max(...blocks.map((b) => (b.stop - b.start) * cell)));
  return blocks.map((block, k) => {
    const middle = (block.start + block.stop - 1) / 2;
    const place = upright
      ? {xref: "paper", x: 0, xshift: -offset, y: middle, xanchor: "right", textangle: -90}
      : {yref: "paper", y: 0, yshift: -offset, x: middle, yanchor: "top"};
    return {text: texts[k], showarrow: false, font: {size: 11}, ...place};
  }).filter((_, k) => k % every === 0);
}

function cellOutline(column, row, dash = "solid") {
  const at = {type: "rect", x0: column - 0.5, x1: column + 0.5, y0: row - 0.5, y1: row + 0.5};
  return [
    {...at, line: {color: "#000", width: 4}},
    {...at, line: {color: "#fff", width: 2, dash}},
  ];
}

// The frame of a map: rows x from top to bottom, columns y from left to right.
function mapLayout(measure, rows, columns, width, most) {
  const axis = axisOf(measure);
  const narrow = width < 480;
  const ticked = blocksOf(axis, rows).length < rows.length;
  const layers = ticked ? 20 : 4;
  const lines = narrow ? 1 : 2;
  const labels = layers + 20 + 14 * lines;
  const margin = {
    l: labels, r: narrow ? 8 : 74, t: narrow ? 46 : 8, b: labels, autoexpand: false,
  };
  const side = Math.min(width - margin.l - margin.r, most);
  const cell = side / Math.max(columns.length, 1);
  const height = cell * rows.length;
  const [rowBlocks, columnBlocks] = [blocksOf(axis, rows), blocksOf(axis, columns)];
  const texts = [rowBlocks, columnBlocks].map((blocks) => blockTexts(blocks, cell, lines));
  const [yTicks, yNames] = ticksOf(axis, rows, rowBlocks, cell);
  const [xTicks, xNames] = ticksOf(axis, columns, columnBlocks, cell);
  const common = {
    fixedrange: true, showgrid: false, zeroline: false, ticks: ticked ? "outside" : "", ticklen: 3,
    tickfont: {size: 10}, tickangle: 0,
  };
  const kind = (side) => `${side}${ticked ? " (layer)" : ""}`;
  const title = (text, place) => (
    {text, showarrow: false, font: {size: 11, color: GREY}, ...place});
  const layout = {
    width: side + margin.l + margin.r,
    height: height + margin.t + margin.b,
    margin,
    xaxis: {...common, range: [-0.5, columns.length - 0.5], tickvals: xTicks, ticktext: xNames},
    yaxis: {...common, range: [rows.length - 0.5, -0.5], tickvals: yTicks, ticktext: yNames},
    annotations: [
      ...blockNames(rowBlocks, texts[0], cell, layers, true),
      ...blockNames(columnBlocks, texts[1], cell, layers, false),
      title(kind("row x"), {
        xref: "paper", yref: "paper", x: 0, y: 0.5, xshift: -margin.l + 2, xanchor: "left",
        textangle: -90}),
      title(kind("column y"), {
        xref: "paper", yref: "paper", x: 0.5, y: 0, yshift: -margin.b + 2, yanchor: "bottom"}),
    ],
    shapes: separators(rowBlocks, columnBlocks, rows.length, columns.length),
  };
  const lettered = rowBlocks.some(({model}, k) => texts[0][k] === page.models[model].letter);
  return {layout, cell, narrow, lettered};
}

function modelKey() {
  const names = [...state.models].map((m) => `${page.models[m].letter}: ${page.models[m].short}`);
  return `${names.join(" · ")}. `;
}

function drawMap() {
  const measure = state.measure;
  const axis = axisOf(measure);
  const places = shownPlaces(axis);
  const {layout, cell, narrow, lettered} = mapLayout(
    measure, places, places, widthOf("map"), printing ? 440 : 580);
  const bar = colourBar(measure.name, narrow);
  layout.shapes = [...layout.shapes, ...selectedCells(axis, places)];
  const traces = cellTraces(measure, places, places, {cell, bar});
  draw("map", traces, layout);
  const reads = measure.directed ? "How well column y accounts for row x. " : "";
  const holes = measure.values.values.some(Number.isNaN) ? "Crosses: not defined. " : "";
  const dots = measure.marks ? `Dots: ${measure.marks.text}. ` : "";
  byId("map").querySelector("figcaption").replaceChildren(element("b", {}, measure.name),
    ` ${measure.summary}${measure.summary && ". "}${reads}` +
    `${colourRangeText([traces[0].zmin, traces[0].zmax])}${holes}${dots}${lettered ? modelKey() : ""}`);
  plotOf("map").setAttribute("aria-label",
    `${measure.name} of ${places.length} by ${places.length} layers; arrow keys select a cell, ` +
    "Home and End the first and last of its row, Enter leads to its link");
  // Its pixels say nothing to those who hear the page: the label, the cell read out and the table do.
  plotOf("map").querySelector(".plot-container").setAttribute("aria-hidden", "true");
  fillMapTable();
}

// The map as a table, for those who do not see it; built only while it is unfolded.
function fillMapTable() {
  const place = byId("map-table");
  const [heads, ...rows] = place.open ? mapRows() : [[]];
  const write = (value, column) => (column ? formatScore(value) : value);
  place.querySelector(".content").replaceChildren(...(place.open ? [scrolling(
    makeTable(heads, rows, {numeric: (k) => k > 0, write, named: true}), true)] : []));
}

// The outlines of the selected cell, and of the one that is kept to compare others with.
function selectedCells(axis, places) {
  const outline = (cell, dash) => {
    const [row, column] = cell.map((name) => places.indexOf(placeOf(axis, name)));
    return row < 0 || column < 0 ? [] : cellOutline(column, row, dash);
  };
  return [
    ...(state.kept ? outline(state.kept, "dot") : []), ...outline([state.x, state.y], "solid")];
}

// Move the outline of the selected cell, without drawing the map again.
function markCell() {
  const measure = state.measure;
  const places = shownPlaces(axisOf(measure));
  const blocks = blocksOf(axisOf(measure), places);
  Plotly.relayout(plotOf("map"), {shapes: [
    ...separators(blocks, blocks, places.length, places.length),
    ...selectedCells(axisOf(measure), places),
  ]});
}

function listenToMap() {
  const plot = plotOf("map");
  plot.on("plotly_click", ({points: [point]}) => {
    const axis = axisOf(state.measure);
    const places = shownPlaces(axis);
    selectPair(representation(axis, places[point.y]), representation(axis, places[point.x]),
      writeLink);
  });
  const moves = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};
  plot.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const axis = axisOf(state.measure);
    const places = shownPlaces(axis);
    const at = [state.x, state.y].map((name) => placeOf(axis, name));
    let cell;
    if (event.key === "Enter") {
      writeLink();
      byId("link").focus();
    } else if (event.key in moves) {
      cell = at.map((place, k) =>
        places[stepFrom(axis, places, place, moves[event.key][k], event.shiftKey)]);
    } else if (event.key === "Home" || event.key === "End") {
      const row = places.includes(at[0]) ? at[0] : places[0];
      cell = [row, event.key === "Home" ? places[0] : places.at(-1)];
    } else return;
    event.preventDefault();
    if (cell) selectPair(...cell.map((place) => representation(axis, place)));
  });
  plot.addEventListener("keyup", ({key}) => {
    if (key in moves || key === "Home" || key === "End") rewriteLink();
  });
  byId("map-table").addEventListener("toggle", fillMapTable);
}

// The place along the map one step further, or at the start of the next block.
function stepFrom(axis, places, place, step, byBlock) {
  const from = Math.max(places.indexOf(place), 0);
  let to = from + step;
  if (byBlock && step) {
    const starts = blocksOf(axis, places).map((block) => block.start);
    to = step > 0 ? starts.find((s) => s > from) : starts.findLast((s) => s < from);
  }
  return to === undefined ? from : Math.min(Math.max(to, 0), places.length - 1);
}

function mapRows() {
  const axis = axisOf(state.measure);
  const places = shownPlaces(axis);
  const name = (place) => `${page.models[axis.model[place]].name}/${axis.layer[place]}`;
  return [
    ["x \\ y", ...places.map(name)],
    ...places.map((i) => [name(i), ...places.map((j) => state.measure.values.at(i, j))]),
  ];
}
