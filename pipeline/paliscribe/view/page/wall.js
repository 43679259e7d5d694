// The wall: filters, items, counts, marks. Its state is the fragment of the address.
const FILTERS = ["text", "task", "kind", "status", "label", "error_kind", "verdict", "least", "most", "column", "value"];
const PAGE = 60;
const MARKS = { a: "accept", r: "reject", x: "fix" };
let items = [], current = 0, run = {}, asked = 0;

const state = () => new URLSearchParams(location.hash.slice(1));

// Change the state: an empty value takes its name away.
function go(changes, replaced = false) {
  const now = state();
  for (const [name, value] of Object.entries(changes)) {
    if (value === "" || value === null) now.delete(name);
    else now.set(name, value);
  }
  const before = location.hash.slice(1);
  if (String(now) === before) return;
  history[replaced ? "replaceState" : "pushState"](null, "", `#${now}`);
  show(new URLSearchParams(before));
}

async function read(address, options) {
  const reply = await fetch(address, options), found = reply.headers.get("content-type")?.includes("json") ? await reply.json() : {};
  if (!reply.ok) throw new Error(found.error || `The page cannot be read (${reply.status}); is paliscribe view still running?`);
  return found;
}

function query(names) {
  const now = state(), made = new URLSearchParams();
  for (const name of names) if (now.get(name)) made.set(name, now.get(name));
  return made;
}

// Show the state; `before`: the one that is shown.
async function show(before = null) {
  const now = state(), differs = (names) => !before || names.some((name) => now.get(name) !== before.get(name));
  fillFilters(now);
  const turn = differs([...FILTERS, "sort", "offset"]) ? ++asked : asked;
  try {
    if (turn === asked && differs([...FILTERS, "sort", "offset"])) {
      $("wall").setAttribute("aria-busy", "true");
      const found = await read(`api/items?${query([...FILTERS, "sort", "offset"])}&limit=${PAGE}`);
      if (turn !== asked) return;
      items = found.items;
      current = Math.max(0, items.findIndex((item) => isNamed(item, now)));
      build();
      $("error").textContent = "";
      $("wall").setAttribute("aria-busy", "false");
    }
    enlarge(now);
    if (differs(FILTERS)) {
      const counts = await read(`api/counts?${query(FILTERS)}`);
      if (turn === asked) tell(counts);
    }
  } catch (error) {
    if (turn === asked) $("error").textContent = error.message;
  }
}

const isNamed = (item, now) => String(item.row) === now.get("row") && item.task === now.get("of");

function fillFilters(now) {
  for (const name of FILTERS) {
    const field = $("filters").elements[name], value = now.get(name) || "";
    if (field.tagName === "SELECT" && value && ![...field.options].some((one) => one.value === value)) {
      field.append(element("option", value, { value }));
    }
    if (field !== document.activeElement) field.value = value;
  }
  $("sort").value = now.get("sort") || "manifest";
}

function choices(name, found, all = "all") {
  const made = [element("option", all, { value: "" })];
  for (const value of found) made.push(element("option", value, { value }));
  $("filters").elements[name].replaceChildren(...made);
}

function tell(counts) {
  $("total").textContent = `${counts.total.toLocaleString("en")} ${counts.total === 1 ? "item" : "items"}`;
  const offset = Number(state().get("offset") || 0);
  $("place").textContent = items.length ? `${(offset + 1).toLocaleString("en")} to ${(offset + items.length).toLocaleString("en")}` : "";
  $("before").disabled = offset === 0;
  $("after").disabled = offset + items.length >= counts.total;
  $("labels").replaceChildren(...Object.keys(counts.label).map((label) => element("option", "", { value: label })));
  $("plots").replaceChildren(...counts.plots.map((svg) => {
    const title = svg.match(/<title>([^<]*)/)?.[1] || "plot";
    return element("img", "", { alt: title, src: `data:image/svg+xml,${encodeURIComponent(svg)}` });
  }));
}

function build() {
  $("wall").replaceChildren(...items.map(tile));
  if (!items.length) $("wall").append(element("li", "Nothing has these properties.", { className: "quiet" }));
  choose(current, false);
}

function tile(item, number) {
  const button = element("button", "", { type: "button", className: "tile" }), frame = element("span", "", { className: "frame" });
  frame.append(pictureOf(item, "small"));
  if (item.width) frame.append(overlay(item));
  const said = element("span", "", { className: "said" });
  said.append(element("span", wordsOf(item), { className: "words" }), factsOf(item));
  button.append(frame, said);
  button.addEventListener("click", () => { choose(number); open(); });
  const made = element("li");
  made.append(button);
  return made;
}

const wordsOf = (item) => (item.status === "error" ? item.error_message || "" : boxesOf(item).length ? labelsOf(item) : (!isCorrected(item) && item.text) || "(nothing)");

function labelsOf(item) {
  const counts = new Map();
  for (const { label } of boxesOf(item)) counts.set(label, (counts.get(label) || 0) + 1);
  return [...counts].map(([label, count]) => (count > 1 ? `${count} × ${label}` : label)).join(", ");
}

function factsOf(item) {
  const facts = element("span", "", { className: "facts" });
  if (item.status !== "ok") facts.append(element("span", item.status === "error" ? item.error_kind : item.status, { className: "badge bad" }));
  if (item.verdict) facts.append(element("span", item.verdict, { className: `badge verdict${item.verdict === "accept" ? "" : " bad"}` }));
  if (item.score !== null) facts.append(element("span", percent(item.score)));
  if (item.disagreement !== null && item.disagreement !== undefined) facts.append(element("span", `differs ${percent(item.disagreement)}`));
  facts.append(element("span", item.prompt || item.task));
  return facts;
}

function choose(number, scrolled = true) {
  current = Math.min(items.length - 1, Math.max(0, number));
  const tiles = [...document.querySelectorAll(".tile")];
  tiles.forEach((each, at) => each.setAttribute("aria-current", String(at === current)));
  if (scrolled) tiles[current]?.scrollIntoView({ block: "nearest" });
}

let saving = Promise.resolve();

// Mark an item, after all marks before; the verdict that it has already is taken away. `change`: makes parts of the
// right answer of a fix. `redrawn`: whether the answers are built anew.
function mark(item, verdict, change = null, redrawn = true) {
  saving = saving.then(() => save(item, verdict, change, redrawn));
}

async function save(item, verdict, change, redrawn) {
  const wanted = item.verdict === verdict && !change ? null : verdict;
  const { right, right_boxes } = { ...item, ...change?.() };
  const answer = wanted === "fix" ? { text: right, boxes: right_boxes && sent(item, right_boxes) } : {};
  try {
    const body = JSON.stringify({ row: item.row, task: item.task, verdict: wanted, ...answer });
    await read("api/mark", { method: "PUT", headers: { "Content-Type": "application/json" }, body });
    for (const each of [item, ...items, ...whole]) {
      if (each.row === item.row && each.task === item.task) Object.assign(each, { verdict: wanted, right, right_boxes });
    }
    build();
    complain("");
  } catch (error) {
    complain(error.message);
  }
  if (!$("large").open) return;
  cover();
  if (redrawn) answers();
}

// Say what went wrong, on the wall and over it.
function complain(words) {
  for (const name of ["error", "large-error"]) $(name).textContent = words;
}
