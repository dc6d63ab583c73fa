"""The fixed parts of an HTML report: its style and its script, which only show what the page holds. No network."""

from __future__ import annotations

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#111;background:#fff}
h1{font-size:1.4em;overflow-wrap:anywhere}h2{font-size:1.1em;margin:1.8em 0 .4em}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.15em .6em .15em 0;border-bottom:1px solid #ddd;
vertical-align:top;overflow-wrap:anywhere}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.verdict{font-size:1.2em;font-weight:600}canvas{width:100%;height:auto;border:1px solid #888;image-rendering:pixelated;
cursor:crosshair;touch-action:none}.key span{display:inline-block;margin-right:1.2em}
.key i{display:inline-block;width:.9em;height:.9em;border:1px solid #555;margin-right:.35em;vertical-align:-.1em}
.at{min-height:1.5em;font-family:ui-monospace,monospace}button,input{font:inherit;margin-right:.4em}
a.place{cursor:pointer;font-family:ui-monospace,monospace}
@media print{canvas{max-height:14em}.tools{display:none}}
"""

SCRIPT = """
"use strict";
(async function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const COLUMNS = 256, ROWS = 64, CELL = 4;
  const hex = (value) => "0x" + value.toString(16);
  async function runs(map) {
    const packed = Uint8Array.from(atob(map.runs), (char) => char.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    let at = 0;
    const number = () => {
      let value = 0, scale = 1;
      for (;;) {
        const byte = bytes[at++];
        value += (byte & 127) * scale;
        if (byte < 128) return value;
        scale *= 128;
      }
    };
    const starts = [], kinds = [], places = [];
    let start = 0;
    while (at < bytes.length) {
      starts.push(start);
      start += number();
      kinds.push(number());
      places.push(map.places ? number() : 0);
    }
    starts.push(start);
    return { starts: Float64Array.from(starts), kinds: Uint8Array.from(kinds), places: Float64Array.from(places) };
  }
  function find(starts, offset) {
    let low = 0, high = starts.length - 2;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (starts[middle] <= offset) low = middle; else high = middle - 1;
    }
    return low;
  }
  const views = {};
  async function show(id) {
    const map = data.maps[id];
    const found = await runs(map);
    const size = found.starts[found.starts.length - 1];
    const canvas = document.getElementById(id), told = document.getElementById(id + "-at");
    const field = document.getElementById(id + "-find");
    canvas.width = COLUMNS * CELL;
    canvas.height = ROWS * CELL;
    const context = canvas.getContext("2d");
    let from = 0, to = size, mark = -1;
    const step = () => (to - from) / (COLUMNS * ROWS);
    function kindOf(start, end) {
      let row = find(found.starts, start), best = -1, most = 0;
      for (let tries = 0; tries < 64 && row < found.kinds.length && found.starts[row] < end; tries++, row++) {
        const length = Math.min(end, found.starts[row + 1]) - Math.max(start, found.starts[row]);
        const weight = length * (map.empty.includes(found.kinds[row]) ? 0.01 : 1);
        if (weight > most) { most = weight; best = found.kinds[row]; }
      }
      return best;
    }
    function draw() {
      context.fillStyle = "#fff";
      context.fillRect(0, 0, canvas.width, canvas.height);
      for (let cell = 0; cell < COLUMNS * ROWS; cell++) {
        const kind = kindOf(from + cell * step(), from + (cell + 1) * step());
        if (kind < 0) continue;
        context.fillStyle = map.kinds[kind][1];
        context.fillRect((cell % COLUMNS) * CELL, Math.floor(cell / COLUMNS) * CELL, CELL, CELL);
      }
      if (mark >= from && mark < to) {
        const cell = Math.floor((mark - from) / step());
        context.strokeStyle = "#000";
        context.lineWidth = 2;
        context.strokeRect((cell % COLUMNS) * CELL - 2, Math.floor(cell / COLUMNS) * CELL - 2, CELL + 4, CELL + 4);
      }
    }
    function tell(offset) {
      const row = find(found.starts, offset);
      const place = found.places[row] ? ", in the file from " + hex(found.places[row] - 1) : "";
      told.textContent = hex(offset) + ": " + map.kinds[found.kinds[row]][0] + ", " + hex(found.starts[row]) + ".." +
        hex(found.starts[row + 1] - 1) + place;
    }
    function offsetAt(event) {
      const box = canvas.getBoundingClientRect();
      const column = Math.min(COLUMNS - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * COLUMNS)));
      const line = Math.min(ROWS - 1, Math.max(0, Math.floor((event.clientY - box.top) / box.height * ROWS)));
      return Math.min(size - 1, Math.floor(from + (line * COLUMNS + column) * step()));
    }
    function zoom(offset, factor) {
      const length = Math.min(size, Math.max(COLUMNS * ROWS, (to - from) * factor));
      from = Math.max(0, Math.min(size - length, offset - (offset - from) / (to - from) * length));
      to = from + length;
      draw();
    }
    function go(offset) {
      if (!(offset >= 0 && offset < size)) { told.textContent = "no such offset"; return; }
      mark = offset;
      if (offset < from || offset >= to) { from = 0; to = size; }
      draw();
      tell(offset);
    }
    views[id] = go;
    canvas.addEventListener("mousemove", (event) => { if (size) tell(offsetAt(event)); });
    canvas.addEventListener("click", (event) => { if (size) go(offsetAt(event)); });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoom(offsetAt(event), event.deltaY < 0 ? 0.5 : 2);
    }, { passive: false });
    field.addEventListener("change", () => go(Number(field.value)));
    document.getElementById(id + "-in").addEventListener("click", () => zoom(mark < 0 ? from : mark, 0.25));
    document.getElementById(id + "-out").addEventListener("click", () => { from = 0; to = size; draw(); });
    draw();
  }
  for (const id of Object.keys(data.maps)) await show(id);
  for (const link of document.querySelectorAll("a.place")) {
    link.addEventListener("click", () => {
      views.file(Number(link.dataset.offset));
      document.getElementById("file").scrollIntoView();
    });
  }
  document.body.dataset.ready = "yes";
})();
"""
