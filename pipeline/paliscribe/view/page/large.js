// One picture large, with the answers to all tasks.
const STEP = 1.5, MOST = 12;
let whole = [], columns = {}, zoom = 1, chosen = "";

const open = () => { if (items[current]) go({ row: items[current].row, of: items[current].task }); };
const close = () => go({ row: null, of: null });

async function enlarge(now) {
  const row = now.get("row");
  if (!row) {
    if ($("large").open) $("large").close();
    whole = [];
    return;
  }
  chosen = now.get("of") || "";
  if (String(whole[0]?.row) !== row) {
    const found = await read(`api/row/${encodeURIComponent(row)}`);
    if (state().get("row") !== row) return;
    [whole, columns, zoom] = [found.items.map(keyed), found.columns, 1];
  }
  if (!whole.some((item) => item.task === chosen)) chosen = whole[0].task;
  if (!$("large").open) $("large").showModal();
  draw();
  answers();
  document.querySelector(".answer.current")?.scrollIntoView({ block: "nearest" });
}

const shown = () => whole.find((item) => item.task === chosen);

function draw() {
  const item = shown(), decoded = whole.find((each) => each.width) || item;
  $("large-id").textContent = item.id;
  $("stage").replaceChildren(pictureOf(decoded, zoom > 1.5 && Math.max(decoded.width, decoded.height) > 1600 ? "whole" : "large"));
  cover();
  $("stage").style.width = $("stage").style.height = `${100 * zoom}%`;
  $("smaller").disabled = zoom === 1;
}

// What is drawn over the picture, anew.
function cover() {
  const item = shown();
  if (!item) return;
  document.querySelector("#stage svg")?.remove();
  if (item.width) $("stage").append(overlay(item));
  $("stage").classList.toggle("edited", isEdited(item));
}

function setZoom(wanted) {
  const view = $("viewport");
  const x = (view.scrollLeft + view.clientWidth / 2) / view.scrollWidth, y = (view.scrollTop + view.clientHeight / 2) / view.scrollHeight;
  zoom = Math.min(MOST, Math.max(1, wanted));
  draw();
  view.scrollTo(x * view.scrollWidth - view.clientWidth / 2, y * view.scrollHeight - view.clientHeight / 2);
}

function answers() {
  const at = document.activeElement?.dataset.at; // where the keys are
  const made = whole.map(answer), facts = Object.entries(columns).map(([name, value]) => `${name}: ${value}`).join(" · ");
  $("answers").replaceChildren(...made, element("p", facts, { className: "quiet" }));
  proposeNames();
  if (at) document.querySelector(`[data-at="${CSS.escape(at)}"]`)?.focus({ preventScroll: true });
}

function answer(item) {
  const made = element("section", "", { className: "answer" });
  made.classList.toggle("current", item.task === chosen);
  made.addEventListener("click", (event) => { if (!event.target.closest("button, input, label")) go({ of: item.task }, true); });
  made.append(element("h3", item.prompt || item.task));
  if (item.status === "error") made.append(element("p", `${item.error_kind}: ${item.error_message || ""}`, { className: "error" }));
  else made.append(element("p", item.text || "(nothing)", { className: item.boxes?.length ? "raw" : "text" }));
  if (item.status === "invalid") made.append(element("p", item.error_message || "", { className: "error" }));
  made.append(found(item), factsOf({ ...item, prompt: " " }));
  if (item.other) {
    made.append(element("p", `${run.other}: ${item.other.text ?? item.other.error_kind ?? ""}`, { className: "other quiet" }));
  }
  const buttons = element("div", "", { className: "row" });
  for (const [key, verdict] of Object.entries(MARKS)) {
    const button = element("button", `${verdict} (${key})`, { type: "button", className: "small" });
    button.setAttribute("aria-pressed", String(item.verdict === verdict));
    button.dataset.at = `${item.task} ${verdict}`;
    button.addEventListener("click", () => {
      if (verdict === "fix") go({ of: item.task }, true);
      mark(item, verdict);
    });
    buttons.append(button);
  }
  made.append(buttons);
  if (isEdited(item)) made.append(item.task === chosen ? editor(item) : element("p", "Click here to correct the boxes.", { className: "quiet" }));
  if (item.verdict === "fix" && (!isOfBoxes(item) || item.right)) made.append(correction(item));
  return made;
}

function found(item) {
  const list = element("ul");
  const edited = isEdited(item) && item.task === chosen;
  for (const [number, box] of boxesOf(item).entries()) {
    const line = edited ? editedLine(item, box, number) : boxLine(box);
    for (const name of ["mouseenter", "focusin"]) line.addEventListener(name, () => light(item, number, true));
    for (const name of ["mouseleave", "focusout"]) line.addEventListener(name, () => light(item, number, false));
    list.append(line);
  }
  return list;
}

function boxLine(box) {
  const line = element("li"), colour = element("i");
  colour.style.background = colorOf(box.label);
  line.append(colour, element("span", titleOf(box)));
  return line;
}

function light(item, number, on) {
  if (item.task === chosen) document.querySelectorAll("#stage .box")[number]?.classList.toggle("on", on);
}

function correction(item) {
  const field = element("input", "", { className: "right", value: item.right ?? item.text ?? "", placeholder: "The right answer, then Enter" });
  field.setAttribute("aria-label", "The right answer");
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !field.value) return;
    mark(item, "fix", () => ({ right: field.value }));
  });
  return field;
}

// The item before or after, on the wall or large.
function move(by) {
  choose(current + by);
  if ($("large").open) go({ row: items[current].row, of: items[current].task }, true);
}
