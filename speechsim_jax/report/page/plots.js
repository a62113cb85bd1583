// What all figures share: fonts and colours, panels of curves, and buttons that save them.

const FONT =
  '-apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif';
const INK = "#1a1a1a";
const GREY = "#595959";
const PRINTED_WIDTH = 680;
let printing = false;

const byId = (id) => document.getElementById(id);
const plotOf = (id) => byId(id).querySelector(".plot");

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

// Text for plotly, which reads it as HTML.
function plain(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function widthOf(id) {
  return printing ? PRINTED_WIDTH : plotOf(id).clientWidth;
}

const pen = document.createElement("canvas").getContext("2d");
function textWidth(text, size) {
  pen.font = `${size}px ${FONT}`;
  return pen.measureText(text).width;
}

// The name in one line or in two; null if neither fits.
function fitName(name, room, size, lines) {
  if (textWidth(name, size) <= room) return plain(name);
  if (lines < 2) return null;
  const cuts = [...name.matchAll(/[-_. /]/g)].map((match) => match.index + 1);
  const wide = (cut) => Math.max(
    textWidth(name.slice(0, cut), size), textWidth(name.slice(cut), size));
  const cut = cuts.sort((a, b) => wide(a) - wide(b))[0];
  if (cut === undefined || wide(cut) > room) return null;
  return `${plain(name.slice(0, cut))}<br>${plain(name.slice(cut))}`;
}

function draw(id, traces, layout) {
  const common = {
    font: {family: FONT, size: 11, color: INK},
    hoverlabel: {
      bgcolor: "#fff", bordercolor: INK, align: "left",
      font: {family: FONT, size: 12, color: INK},
    },
    paper_bgcolor: "#fff",
    plot_bgcolor: "#fff",
    dragmode: false,
    showlegend: false,
  };
  const config = {displayModeBar: false, doubleClick: false};
  return Plotly.react(plotOf(id), traces, {...common, ...layout}, config);
}

// Curves in panels with one legend.
// panels: [{title, logarithmic, integer, series}]
// series: [{name, rank, colour, symbol, dash, x, y, texts}]
// Series of one name are in the legend once, ordered by rank; `keys` explain the dashes.
function drawPanels(id, panels, {keys = [], xTitle, shared = false, most = 3}) {
  const width = widthOf(id);
  const across = Math.max(1, Math.min(most, panels.length, Math.floor(width / 300)));
  const down = Math.ceil(panels.length / across);
  const [left, right, top, gap, panelGap] = [44, 8, 22, 48, 46];
  const inner = width - left - right;
  const panelWidth = (inner - gap * (across - 1)) / across;
  const panelHeight = Math.min(Math.max(0.42 * panelWidth, 150), 220);
  const innerHeight = panelHeight * down + panelGap * (down - 1);
  const traces = [];
  const annotations = [];
  const axes = {};
  const named = new Set();
  panels.forEach((panel, index) => {
    const [column, row] = [index % across, Math.floor(index / across)];
    const suffix = index ? String(index + 1) : "";
    const x0 = column * (panelWidth + gap) / inner;
    const y1 = 1 - row * (panelHeight + panelGap) / innerHeight;
    const line = {
      linecolor: GREY, gridcolor: "#e5e5e5", zeroline: false, ticks: "outside", ticklen: 3,
    };
    axes[`xaxis${suffix}`] = {
      ...line, domain: [x0, x0 + panelWidth / inner], anchor: `y${suffix}`, range: [-0.03, 1.03],
      fixedrange: true, tickvals: [0, 0.25, 0.5, 0.75, 1],
      title: index + across >= panels.length ? {text: xTitle, standoff: 6} : undefined,
    };
    axes[`yaxis${suffix}`] = {
      ...line, domain: [y1 - panelHeight / innerHeight, y1], anchor: `x${suffix}`, fixedrange: true,
      nticks: 6, exponentformat: "SI", rangemode: panel.integer ? "nonnegative" : "normal",
      dtick: panel.integer && fewIntegers(panel) ? 1 : undefined,
      matches: shared && index ? "y" : undefined,
      ...(shared ? {} : panel.logarithmic ? powers(panel) : roundedRange(panel)),
    };
    annotations.push({
      text: `<b>${plain(panel.title)}</b>`, showarrow: false, xanchor: "left", yanchor: "bottom",
      xref: "paper", yref: "paper", x: x0, y: y1, font: {size: 12},
    });
    for (const curve of panel.series) {
      const first = !named.has(curve.name);
      named.add(curve.name);
      traces.push({
        type: "scatter", mode: curve.symbol ? "lines+markers" : "lines", name: plain(curve.name),
        x: curve.x, y: curve.y, xaxis: `x${suffix}`, yaxis: `y${suffix}`, connectgaps: false,
        legendgroup: String(curve.rank), showlegend: first, legendrank: curve.rank,
        line: {color: curve.colour, width: 1.5, dash: curve.dash},
        marker: {
          symbol: curve.symbol, size: 6,
          color: curve.dash === "solid" ? curve.colour : "#fff",
          line: {color: curve.colour, width: 1.2},
        },
        hovertext: curve.texts, hoverinfo: "text", cliponaxis: !panel.integer,
      });
    }
  });
  for (const key of keys) {
    traces.push({
      type: "scatter", mode: "lines", x: [null], y: [null], name: key.name, hoverinfo: "skip",
      legendrank: 2000,
      line: {color: GREY, width: 1.5, dash: key.dash},
    });
  }
  const names = traces.filter((trace) => trace.showlegend !== false).map((trace) => trace.name);
  const lines = legendLines(names, inner);
  const bottom = 46 + 19 * lines;
  return draw(id, traces, {
    ...axes, annotations, width, height: top + innerHeight + bottom,
    margin: {l: left, r: right, t: top, b: bottom}, hovermode: "closest",
    showlegend: names.length > 0,
    legend: {
      orientation: "h", x: 0, xanchor: "left", y: 0, yanchor: "bottom", yref: "container",
      font: {size: 11}, itemwidth: 30, tracegroupgap: 0,
    },
  });
}

// A logarithmic axis, if the values span enough powers of ten to be read; else a linear one.
function powers(panel) {
  const values = panel.series.flatMap((curve) => curve.y).filter((value) => value > 0);
  const [low, high] = [Math.min(...values), Math.max(...values)].map(Math.log10);
  if (!(high - low > 1)) return {};
  const tickvals = [];
  for (let power = Math.floor(low); power <= high; power++) {
    for (const digit of high - low < 3 ? [1, 2, 5] : [1]) tickvals.push(digit * 10 ** power);
  }
  return {type: "log", tickvals};
}

// Values that differ by rounding only are drawn as equal.
function roundedRange(panel) {
  const values = panel.series.flatMap((curve) => curve.y).filter(Number.isFinite);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  if (!values.length || panel.integer || !(high - low < 1e-5 * Math.abs(high))) return {};
  return {range: [low - 0.01 * Math.abs(low), high + 0.01 * Math.abs(high)]};
}

// Whether ticks chosen by plotly would not be integers.
function fewIntegers(panel) {
  const values = panel.series.flatMap((curve) => curve.y);
  return Math.max(...values) - Math.min(...values) < 5;
}

// The lines of a horizontal legend, where plotly gives every entry the width of the widest.
function legendLines(names, width) {
  const widest = Math.max(0, ...names.map((name) => textWidth(name, 11))) + 50;
  return Math.ceil(names.length / Math.max(1, Math.floor(width / widest)));
}

// Add buttons below a figure or table; `rows()` is what goes into CSV, `name()` the file's name.
function addDownloads(place, name, rows, plot = null) {
  const button = (label, action) => element("button", {
    type: "button", "aria-label": `Save ${label} of ${place.id || name()}`, onclick: action,
  }, label);
  const buttons = [button("CSV", () => save(`${name()}.csv`, csv(rows())))];
  if (plot) {
    const image = (format) => () => Plotly.downloadImage(plot, {
      format, filename: name(), scale: format === "png" ? 3 : 1,
      width: plot.layout.width, height: plot.layout.height,
    });
    buttons.unshift(button("SVG", image("svg")), button("PNG", image("png")));
  }
  place.append(element("div", {class: "downloads"}, "Save", ...buttons));
}
