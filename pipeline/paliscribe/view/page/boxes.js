// Corrected boxes: an item that asks for a fix has its boxes drawn, moved by a corner, named and removed.
const NEAR = 9, STILL = 4; // window pixels: to a corner that is meant; of a pointer that only clicks
let drag = null, keys = 0;

const isOfBoxes = (item) => Boolean(item.width) && (["detect", "segment"].includes(item.kind) || item.boxes?.length > 0);
const isEdited = (item) => item.verdict === "fix" && isOfBoxes(item);

// Boxes have keys here, by which those that are copied with a change are found again.
function keyed(item) {
  (item.boxes || []).forEach((box, number) => Object.assign(box, { of: number, key: ++keys }));
  for (const box of item.right_boxes || []) box.key = ++keys;
  return item;
}

const changeBoxes = (item, change, redrawn = true) =>
  mark(item, "fix", () => ({ right_boxes: change(boxesOf(item)) }), redrawn);
const without = (item, key) => changeBoxes(item, (boxes) => boxes.filter((box) => box.key !== key));
const withChange = (item, key, values, redrawn) => changeBoxes(item,
  (boxes) => boxes.map((box) => (box.key === key ? { ...box, ...values, of: null, score: null } : box)), redrawn);

// As the server takes them: a box of the model by its number, others within the picture.
function sent(item, boxes) {
  const across = (x) => Math.min(item.width, Math.max(0, x)), down = (y) => Math.min(item.height, Math.max(0, y));
  return boxes.map((box) => (box.of !== null ? { of: box.of } : { label: box.label,
    x_min: across(box.x_min), y_min: down(box.y_min), x_max: across(box.x_max), y_max: down(box.y_max) }));
}

const namesIn = (prompt) => (prompt || "").replace(/^\s*(detect|segment)\s/i, "").split(";").map((name) => name.trim()).filter(Boolean);

// The label of the next box: what was typed, or that of the last box, or the first of the prompt.
const nameOf = (item) => (item.next || boxesOf(item).at(-1)?.label || namesIn(item.prompt)[0] || "object").trim();

function editor(item) {
  const field = nameField(nameOf(item), "Label of new boxes", `${item.task} next`), row = element("div", "", { className: "row" });
  const label = element("label", "New boxes: ", { className: "next" });
  field.addEventListener("input", () => { item.next = field.value; });
  label.append(field);
  const reset = element("button", "Reset", { type: "button", className: "small", title: "Back to the model's boxes" });
  reset.dataset.at = `${item.task} reset`;
  reset.addEventListener("click", () => mark(item, "fix", () => ({ right_boxes: null })));
  row.append(label, reset);
  const words = "Draw boxes on the picture; drag a corner to move it. Click a box to find it here; × or Delete removes it.";
  const all = element("div", "", { className: "editor" });
  all.append(row, element("p", words, { className: "quiet" }));
  return all;
}

function nameField(value, words, at) {
  const field = element("input", "", { value, maxLength: 200, autocomplete: "off" });
  field.setAttribute("list", "names");
  field.setAttribute("aria-label", words);
  field.dataset.at = at;
  return field;
}

// The line of a box in the list.
function editedLine(item, box, number) {
  const line = element("li"), colour = element("i"), field = nameField(box.label, `Label of box ${number + 1}`, `${item.task} label ${number}`);
  colour.style.background = colorOf(box.label);
  field.addEventListener("change", () => {
    const label = field.value.trim();
    if (!label) field.value = box.label;
    else withChange(item, box.key, { label }, false); // a click that ends the typing still has its target
    colour.style.background = colorOf(field.value);
  });
  const remove = element("button", "×", { type: "button", className: "remove" });
  remove.setAttribute("aria-label", `Remove box ${number + 1}: ${box.label}`);
  remove.dataset.at = `${item.task} remove ${number}`;
  remove.addEventListener("click", () => without(item, box.key));
  remove.addEventListener("keydown", (event) => { if (["Delete", "Backspace"].includes(event.key) && !event.repeat) without(item, box.key); });
  line.append(colour, field, element("span", box.score === null ? "" : percent(box.score)), remove);
  return line;
}

// Labels that fields propose.
function proposeNames() {
  const names = [...new Set([...whole.flatMap((item) => (isOfBoxes(item) ? namesIn(item.prompt) : [])), ...seen.keys()])];
  $("names").replaceChildren(...names.slice(0, 200).map((value) => element("option", "", { value })));
}

// The place of a pointer in pixels of the original, within the picture, and the window pixels of one of these.
function placeOf(event, item) {
  const matrix = document.querySelector("#stage svg").getScreenCTM();
  const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse());
  return { x: Math.min(item.width, Math.max(0, x)), y: Math.min(item.height, Math.max(0, y)), scale: matrix.a };
}

// The box one of whose corners is here, and the opposite corner, which stays.
function cornerAt(item, { x, y, scale }) {
  let found = null, least = NEAR / scale;
  for (const box of boxesOf(item)) {
    for (const [cornerX, cornerY] of cornersOf(box)) {
      const away = Math.hypot(cornerX - x, cornerY - y);
      if (away > least) continue;
      least = away;
      found = { box, x: box.x_min + box.x_max - cornerX, y: box.y_min + box.y_max - cornerY };
    }
  }
  return found;
}

function beginDrag(event) {
  const item = shown();
  if (event.button !== 0 || !item || !isEdited(item) || !document.querySelector("#stage svg")) return;
  const place = placeOf(event, item), corner = cornerAt(item, place);
  const drawing = shape("rect", { class: "drawing" });
  drag = { item, corner, from: corner || place, at: [event.clientX, event.clientY], moved: false, drawing };
  $("stage").setPointerCapture(event.pointerId);
}

function dragged(event) {
  const { x, y } = placeOf(event, drag.item), { from } = drag;
  return { x_min: Math.min(x, from.x), y_min: Math.min(y, from.y), x_max: Math.max(x, from.x), y_max: Math.max(y, from.y) };
}

function continueDrag(event) {
  if (!drag || drag.item !== shown()) return;
  drag.moved ||= Math.hypot(event.clientX - drag.at[0], event.clientY - drag.at[1]) >= STILL;
  if (!drag.moved) return;
  const box = dragged(event);
  for (const [name, value] of Object.entries(rectOf(box))) drag.drawing.setAttribute(name, value);
  document.querySelector("#stage svg").append(drag.drawing);
}

function endDrag(event) {
  const ended = drag;
  if (!ended) return;
  continueDrag(event);
  const box = dragged(event);
  drag = null;
  ended.drawing.remove();
  if (ended.item !== shown()) return;
  if (!ended.moved) pick(ended.item, placeOf(event, ended.item));
  else if (box.x_max - box.x_min < 1 || box.y_max - box.y_min < 1) return;
  else if (ended.corner) withChange(ended.item, ended.corner.box.key, box);
  else changeBoxes(ended.item, (boxes) => [...boxes, { label: nameOf(ended.item), ...box, score: null, of: null, key: ++keys }]);
}

// A click finds the smallest box around it in the list.
function pick(item, { x, y }) {
  const area = (box) => (box.x_max - box.x_min) * (box.y_max - box.y_min);
  const around = boxesOf(item).filter((box) => box.x_min <= x && x <= box.x_max && box.y_min <= y && y <= box.y_max);
  const least = around.sort((one, other) => area(one) - area(other))[0];
  if (least) document.querySelector(`[data-at="${CSS.escape(`${item.task} remove ${boxesOf(item).indexOf(least)}`)}"]`)?.focus();
}

function listenToDrags() {
  $("stage").addEventListener("pointerdown", beginDrag);
  $("stage").addEventListener("pointermove", continueDrag);
  $("stage").addEventListener("pointerup", endDrag);
  $("stage").addEventListener("pointercancel", () => { drag?.drawing.remove(); drag = null; });
  $("stage").addEventListener("dragstart", (event) => event.preventDefault());
}
