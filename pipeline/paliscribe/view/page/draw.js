// Pictures with boxes and masks over them. Text of a run becomes text nodes only, never markup.
const COLORS = ["#0b5cad", "#b4380b", "#15713a", "#86198f", "#7a5200", "#be123c", "#0f6b70", "#5b3fc4"];
const SVG = "http://www.w3.org/2000/svg";
const RUNS = 20000; // of a mask that are drawn
const $ = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(0)} %`;

function element(name, text = "", values = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  return Object.assign(made, values);
}

function shape(name, values, ...inside) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
  made.append(...inside);
  return made;
}

const seen = new Map(); // labels, in the order in which they were shown

// The same label has the same colour on the whole page.
function colorOf(label) {
  if (!seen.has(label)) seen.set(label, seen.size);
  return COLORS[seen.get(label) % COLORS.length];
}

const titleOf = (box) => [box.label || "(no label)", box.score === null ? "" : percent(box.score)].join(" ").trim();

// The runs of foreground of COCO's uncompressed RLE, which goes down the columns, as a path.
function pathOf({ rle, height, width }) {
  const parts = [];
  let at = 0;
  (rle || []).forEach((count, number) => {
    for (let left = number % 2 ? count : 0, from = at; left > 0 && parts.length < RUNS;) {
      const y = from % height, length = Math.min(left, height - y);
      if (from >= height * width) break;
      parts.push(`M${Math.floor(from / height)} ${y}h1v${length}h-1z`);
      [left, from] = [left - length, from + length];
    }
    at += count;
  });
  return parts.join("");
}

// What is drawn over a picture, in pixels of the original.
function overlay(item) {
  const svg = shape("svg", { viewBox: `0 0 ${item.width} ${item.height}`, "aria-hidden": "true" });
  for (const mask of item.masks || []) {
    if (mask.rle && mask.height > 0) svg.append(shape("path", { d: pathOf(mask), fill: colorOf(mask.label), class: "area" }));
  }
  for (const box of item.boxes || []) {
    const place = { x: box.x_min, y: box.y_min, width: Math.max(0, box.x_max - box.x_min), height: Math.max(0, box.y_max - box.y_min) };
    const title = shape("title", {}, titleOf(box)), color = colorOf(box.label);
    svg.append(shape("g", { class: "box" }, title, shape("rect", { ...place, class: "under" }),
      shape("rect", { ...place, class: "over", stroke: color, fill: color })));
  }
  return svg;
}

// A picture, or why there is none.
function pictureOf(item, size) {
  if (!item.width) return element("span", item.error_message || "no picture", { className: "none" });
  const image = element("img", "", { alt: "", loading: "lazy", decoding: "async", src: `picture/${item.row}?size=${size}` });
  image.addEventListener("error", () => image.replaceWith(element("span", "The picture cannot be read any more.", { className: "none" })));
  return image;
}
