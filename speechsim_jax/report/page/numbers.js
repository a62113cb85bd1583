"use strict";
// The numbers behind the page: the arrays that Python packed, and their formats as text and CSV.

const KINDS = {uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array};

// An array of the page. A value that is not defined is NaN, a position that does not exist -1.
class Numbers {
  constructor(buffer, start, entry) {
    const count = entry.shape.reduce((product, size) => product * size, 1);
    this.values = new KINDS[entry.type](buffer, start + entry.offset, count);
    this.shape = entry.shape;
    this.low = entry.low;
    this.step = entry.step;
    this.missing = entry.missing;
  }

  at(...indices) {
    const index = indices.reduce((sum, i, axis) => sum * this.shape[axis] + i, 0);
    const value = this.values[index];
    if (value === this.missing) return this.step === undefined ? -1 : NaN;
    return this.step === undefined ? value : this.low + this.step * value;
  }
}

// The bytes that a script element holds in base64 of gzip.
async function unpack(id) {
  const letters = atob(document.getElementById(id).textContent);
  const bytes = Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

// The data that Python wrote, with the entries of arrays replaced by `Numbers`.
async function readPage() {
  const buffer = await unpack("data");
  const length = new DataView(buffer).getUint32(0, true);
  const text = new TextDecoder().decode(new Uint8Array(buffer, 4, length));
  const isArray = (value) => value !== null && typeof value === "object" && "offset" in value;
  return JSON.parse(text, (_, value) =>
    isArray(value) ? new Numbers(buffer, 4 + length, value) : value);
}

function formatScore(value) {
  return Number.isFinite(value) ? value.toFixed(4) : "–";
}

function formatNumber(value, integer) {
  if (!Number.isFinite(value)) return "–";
  return integer ? String(value) : String(Number(value.toPrecision(4)));
}

// Text that a spreadsheet would take for a formula gets an apostrophe in front, numbers do not.
function csv(rows) {
  const cell = (value) => {
    if (typeof value === "number") {
      return Number.isFinite(value) ? String(Number(value.toPrecision(7))) : "";
    }
    const formula = /^[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]/.test(value) && Number.isNaN(Number(value));
    const text = formula ? `'${value}` : value;
    return /[",;|\t\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "text/csv;charset=utf-8"}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
