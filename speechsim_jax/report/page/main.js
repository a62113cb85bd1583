// The state of the page, the controls that change it, and the start.

let page;
const state = {};

// Select a cell; `keep` puts it into the page's address (link.js).
function selectPair(x, y, keep = () => {}) {
  [state.x, state.y] = [x, y];
  markCell();
  drawPair();
  keep();
}

function drawAll() {
  drawMap();
  drawPair();
  drawTrend();
  drawAlignment();
  if (byId("facts")) drawFacts();
}

function fillToolbar() {
  const groups = Object.entries({representation: "Layers", attention: "Attention heads"}).map(
    ([axis, name]) => element("optgroup", {label: name},
      ...page.measures.filter((measure) => measure.axis === axis).map(
        (measure) => element("option", {value: measure.name}, measure.name))));
  byId("measure").append(...groups.filter((group) => group.childElementCount));
  byId("measure").value = state.measure.name;
  byId("measure").addEventListener("change", () => {
    state.measure = page.measures.find(({name}) => name === byId("measure").value);
    drawAll();
  });
  byId("colours").addEventListener("change", () => {
    state.colours = byId("colours").value;
    drawMap();
    drawAlignment();
  });
  byId("models").append(...page.models.map((model, index) => {
    const box = element("input", {type: "checkbox", checked: true, value: index});
    return element("label", {}, box, ` ${model.letter} ${model.short}`);
  }));
  byId("models").addEventListener("change", ({target}) => {
    const boxes = [...byId("models").querySelectorAll("input")];
    if (!boxes.some((box) => box.checked)) target.checked = true;  // one stays
    state.models = new Set(boxes.filter((box) => box.checked).map((box) => Number(box.value)));
    drawAll();
  });
}

// Remove or replace the panels for which the result has no data.
function replaceMissingPanels() {
  if (!page.measures.some((measure) => measure.axis === "representation")) {
    for (const id of ["correlations", "matches", "neurons"]) byId(id).remove();
    document.querySelector('nav [href="#neurons"]').remove();
  }
  if (!page.facts.length) byId("layers").remove();
  if (!page.influential) byId("influential").remove();
  const absent = (id, text) => byId(id)?.replaceChildren(...[
    byId(id).querySelector("h2, h3"), missing(text)].filter(Boolean));
  if (!page.correlations) absent("correlations", "Not in this result: svcca was not measured.");
  if (!page.matches) absent("matches", "Not in this result: maxcorr was not measured.");
  if (!headMeasure()) {
    absent("heads", "Not in this result: no measure of attention heads was computed.");
  }
  if (!page.neurons) absent("neurons", "Not in this result: maxcorr was not measured.");
  if (!page.facts.length && !page.floors.length) byId("facts")?.remove();
}

function addAllDownloads() {
  const measured = (kind) => () => `${kind}_${state.measure.name}`;
  const ofPair = (kind) => () => [kind, ...[state.x, state.y].map(
    ({model, layer}) => `${page.models[model].short}_${layer}`)].join("_").replaceAll("/", "_");
  const representation = () => selectedPlaces(page.axes.representation);
  const flat = ([heads, rows]) => [heads, ...rows];
  addDownloads(byId("map"), measured("heatmap"), mapRows, plotOf("map"));
  addDownloads(byId("trend"), measured("trend"), trendRows, plotOf("trend"));
  addDownloads(byId("match"), measured("alignment"), alignmentRows, plotOf("match"));
  if (byId("facts")) addDownloads(byId("facts"), () => "facts", factRows, plotOf("facts"));
  if (page.correlations) {
    addDownloads(byId("correlations"), ofPair("svcca_rho"),
      () => [["direction", "rho"], ...correlationsOf(representation())], plotOf("correlations"));
  }
  if (page.matches) {
    addDownloads(byId("matches"), ofPair("neurons"), () => flat(matchRows(representation())));
  }
  if (headMeasure()) {
    addDownloads(byId("heads"), ofPair("heads"),
      () => flat(headRows(selectedPlaces(page.axes.attention))));
  }
  if (page.neurons) {
    addDownloads(byId("neurons"), () => "neurons",
      () => tableRows(byId("neuron-table").querySelector("table")));
  }
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    sortable(table);
    const name = table.dataset.sortable;
    const place = element("div");
    table.parentElement.after(place);
    addDownloads(place, () => name, () => tableRows(table));
  }
}

// Draw again when the width of the figures changes: with the window, and for printing.
function redrawOnResize() {
  let width = document.body.clientWidth;
  let waiting;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      if (width !== document.body.clientWidth) drawAll();
      width = document.body.clientWidth;
    }, 150);
  });
  let unfolded = [];
  const print = (on) => () => {
    printing = on;
    const folded = on ? document.querySelectorAll("details:not([open], .screen)") : unfolded;
    for (const details of folded) details.open = on;
    unfolded = folded;
    drawAll();
  };
  addEventListener("beforeprint", print(true));
  addEventListener("afterprint", print(false));
}

// After the next frame, so that the text and the picture of the map are seen before the long
// work starts; a page in the background has no frames.
const afterPaint = () => new Promise((resolve) => {
  requestAnimationFrame(() => setTimeout(resolve));
  setTimeout(resolve, 250);
});

async function start() {
  await afterPaint();
  const source = new TextDecoder().decode(await unpack("plotly-source"));
  document.head.append(element("script", {}, source));
  page = await readPage();
  performance.mark("data-read");
  const middle = (model) => {
    const places = placesOf(axisOf(state.measure), model);
    return representation(axisOf(state.measure), places[Math.floor(places.length / 2)]);
  };
  state.measure = page.measures[0];
  state.colours = byId("colours").value;
  state.models = new Set(page.models.keys());
  state.first = [middle(0), middle(Math.min(1, page.models.length - 1))];
  [state.x, state.y] = cellOfLink(location.hash) ?? state.first;
  replaceMissingPanels();
  fillToolbar();
  fillPairChoices();
  fillAlignmentChoices();
  if (page.neurons) fillNeuronChoices();
  addAllDownloads();
  byId("still")?.remove();
  drawAll();
  // In which plotly measures text, far off the page.
  byId("js-plotly-tester")?.setAttribute("aria-hidden", "true");
  listenToMap();
  listenToKeep();
  listenToLinks();
  redrawOnResize();
  document.body.dataset.ready = "true";
}

start().catch((error) => {
  const failure = byId("failure");
  failure.textContent =
    `The figures could not be drawn (${error.message}); a browser of 2023 or newer is needed.`;
  failure.hidden = false;
  throw error;
});
