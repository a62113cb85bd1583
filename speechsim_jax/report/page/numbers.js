"use strict";
// The numbers behind the page: the arrays that Python packed, and how they are written out.

const KINDS = {uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array};

// An array of the page; a value that is not defined is NaN, a place that is not there -1.
class Numbers {
  constructor(buffer, start, entry) {
    const count = entry.shape.reduce((product, size) => product * size, 1);
    this.values = new KINDS[entry.type](buffer, start + entry.offset, count);
    this.shape = entry.shape;
    this.low = entry.low;
    this.step = entry.step;
    this.missing = entry.missing;
  }

  at(...place) {
    const index = place.reduce((sum, position, axis) => sum * this.shape[axis] + position, 0);
    const value = this.values[index];
    if (value === this.missing) return this.step === undefined ? -1 : NaN;
    return this.step === undefined ? value : this.low + this.step * value;
  }
}

// What a script element of base64 holds, unpacked.
async function unpacked(id) {
  const letters = atob(document.getElementById(id).textContent);
  const bytes = Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

// The facts that Python wrote, with `Numbers` in the place of what describes an array.
async function readFacts() {
  const buffer = await unpacked("data");
  const length = new DataView(buffer).getUint32(0, true);
  const text = new TextDecoder().decode(new Uint8Array(buffer, 4, length));
  const isArray = (value) => value !== null && typeof value === "object" && "offset" in value;
  return JSON.parse(text, (_, value) =>
    isArray(value) ? new Numbers(buffer, 4 + length, value) : value);
}

function score(value) {
  return Number.isFinite(value) ? value.toFixed(4) : "–";
}

function significant(value, whole) {
  if (!Number.isFinite(value)) return "–";
  return whole ? String(value) : String(Number(value.toPrecision(4)));
}

function csv(rows) {
  const cell = (value) => {
    if (typeof value === "number") {
      return Number.isFinite(value) ? String(Number(value.toPrecision(7))) : "";
    }
    return /[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
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
