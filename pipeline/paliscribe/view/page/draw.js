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

// The boxes of an answer as a reviewer corrected them, and its masks: a mask goes with its box.
const isCorrected = (item) => item.verdict === "fix" && Boolean(item.right_boxes);
const boxesOf = (item) => (isCorrected(item) ? item.right_boxes : item.boxes || []);
const masksOf = (item) => (item.masks || []).filter((mask) => !isCorrected(item)
  || (mask.of !== null && item.right_boxes.some((box) => box.of === mask.of)));

const rectOf = (box) => ({ x: box.x_min, y: box.y_min, width: Math.max(0, box.x_max - box.x_min), height: Math.max(0, box.y_max - box.y_min) });

const cornersOf = (box) => [[box.x_min, box.y_min], [box.x_max, box.y_min], [box.x_min, box.y_max], [box.x_max, box.y_max]];

// What is drawn over a picture, in pixels of the original. Boxes that the model did not give are dashed.
function overlay(item) {
  const svg = shape("svg", { viewBox: `0 0 ${item.width} ${item.height}`, "aria-hidden": "true" });
  for (const mask of masksOf(item)) {
    if (mask.rle && mask.height > 0) svg.append(shape("path", { d: pathOf(mask), fill: colorOf(mask.label), class: "area" }));
  }
  for (const box of boxesOf(item)) {
    const place = rectOf(box), title = shape("title", {}, titleOf(box)), color = colorOf(box.label);
    svg.append(shape("g", { class: box.of === null ? "box drawn" : "box" }, title, shape("rect", { ...place, class: "under" }),
      shape("rect", { ...place, class: "over", stroke: color, fill: color }),
      shape("path", { d: cornersOf(box).map(([x, y]) => `M${x} ${y}h0`).join(""), class: "corners", stroke: color })));
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
