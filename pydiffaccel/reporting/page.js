"use strict";
// Numbers under the pointer. The page shows everything else without it.
for (const area of document.querySelectorAll(".area")) {
  const [x0, x1] = area.dataset.x.split(" ").map(Number);
  const [y0, y1] = area.dataset.y.split(" ").map(Number);
  const log = area.dataset.log === "1";
  const value = (share) => (log ? y0 * (y1 / y0) ** share : y0 + (y1 - y0) * share);
  const format = (v) => (Math.abs(v) >= 1000 ? Math.round(v).toLocaleString("en") : String(Number(v.toPrecision(4))));
  let lines = null;
  let cursor = null;
  let tip = null;

  const nearest = (points, x) => {
    let low = 0;
    let high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][0] > x) high = middle; else low = middle;
    }
    return x - points[low][0] <= points[high][0] - x ? points[low] : points[high];
  };

  const show = (event) => {
    const box = area.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    lines ??= [...area.querySelectorAll("polyline[data-name]")].map((line) => ({
      name: line.dataset.name,
      colour: [...line.classList].find((name) => /^s\d$/.test(name)),
      points: line.getAttribute("points").split(" ").map((point) => point.split(",").map(Number)),
    }));
    if (!tip) {
      cursor = area.appendChild(Object.assign(document.createElement("div"), { className: "cursor" }));
      tip = area.appendChild(Object.assign(document.createElement("div"), { className: "tip" }));
    }
    cursor.style.left = `${100 * share}%`;
    tip.replaceChildren();
    const place = document.createElement("div");
    place.textContent = `${format(x0 + (x1 - x0) * share)} ${area.dataset.unit}`;
    tip.append(place);
    for (const line of lines) {
      const [x, y] = nearest(line.points, 1000 * share);
      if (Math.abs(x - 1000 * share) > 20) continue;
      const row = document.createElement("div");
      row.innerHTML = `<svg class="key" viewBox="0 0 24 8"><line class="${line.colour}" x1="1" y1="4" x2="23" y2="4"/></svg>`;
      row.append(`${line.name} ${format(value(1 - y / 300))}`);
      tip.append(row);
    }
    const right = share < 0.5;
    tip.style.left = right ? `calc(${100 * share}% + .6rem)` : "auto";
    tip.style.right = right ? "auto" : `calc(${100 - 100 * share}% + .6rem)`;
    cursor.hidden = tip.hidden = false;
  };
  area.addEventListener("pointermove", show);
  area.addEventListener("pointerdown", show);
  area.addEventListener("pointerleave", () => {
    if (tip) cursor.hidden = tip.hidden = true;
  });
}
