// Events, and the first state.
function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  const across = $("large").open ? 1 : getComputedStyle($("wall")).gridTemplateColumns.split(" ").length;
  const moves = { ArrowRight: 1, ArrowLeft: -1, j: 1, k: -1, ArrowDown: across, ArrowUp: -across };
  const item = $("large").open ? shown() : items[current];
  if (event.key in moves) move(moves[event.key]);
  else if (event.key in MARKS && item) mark(item, MARKS[event.key]);
  else if (event.key === "f" || (event.key === "Enter" && event.target === document.body)) ($("large").open ? close : open)();
  else if (event.key === "+" || event.key === "=") setZoom(zoom * STEP);
  else if (event.key === "-") setZoom(zoom / STEP);
  else if (event.key === "0") setZoom(1);
  else return;
  event.preventDefault();
}

function chooseFilter(field) {
  if (["column", "value"].includes(field.name) && !($("filters").elements.column.value && $("filters").elements.value.value)) {
    if (!state().get("column")) return;
    go({ column: "", value: "", offset: "" });
    return;
  }
  const both = field.name === "column" || field.name === "value" ? ["column", "value"] : [field.name];
  go({ ...Object.fromEntries(both.map((name) => [name, $("filters").elements[name].value])), offset: "", row: "", of: "" });
}

async function start() {
  const at = new URL(location.href);
  if (at.searchParams.has("token")) { // it is in the cookie now
    at.searchParams.delete("token");
    history.replaceState(null, "", at);
  }
  if (matchMedia("(max-width: 63.99rem)").matches) $("side").open = false;
  let typed = 0;
  $("filters").addEventListener("input", ({ target }) => {
    clearTimeout(typed);
    typed = setTimeout(() => chooseFilter(target), target.tagName === "SELECT" ? 0 : 250);
  });
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("reset", () => go(Object.fromEntries([...FILTERS, "offset"].map((name) => [name, ""]))));
  $("sort").addEventListener("change", () => go({ sort: $("sort").value, offset: "" }));
  $("before").addEventListener("click", () => go({ offset: Math.max(0, Number(state().get("offset") || 0) - PAGE) || "" }));
  $("after").addEventListener("click", () => go({ offset: Number(state().get("offset") || 0) + PAGE }));
  $("larger").addEventListener("click", () => setZoom(zoom * STEP));
  $("smaller").addEventListener("click", () => setZoom(zoom / STEP));
  $("previous").addEventListener("click", () => move(-1));
  $("next").addEventListener("click", () => move(1));
  $("close").addEventListener("click", close);
  $("large").addEventListener("cancel", (event) => { event.preventDefault(); close(); });
  listenToDrags();
  addEventListener("keydown", press);
  addEventListener("popstate", () => show());
  try {
    const [facts, counts] = await Promise.all([read("api/run"), read("api/counts")]);
    run = facts;
    $("output").textContent = [run.output, run.other].filter(Boolean).join(" and ");
    $("note").textContent = [run.note, run.finished ? "" : "The run is not finished; this is what was published when the page was started."].join(" ").trim();
    for (const name of ["task", "kind", "status", "error_kind"]) choices(name, Object.keys(counts[name]).sort());
    choices("verdict", ["none", ...Object.values(MARKS)]);
    choices("column", run.columns, "none");
    for (const own of document.querySelectorAll(".own")) own.hidden = !run.columns.length;
    for (const one of $("sort").options) if (one.value === "disagreement") one.hidden = one.disabled = !run.other;
    await show();
  } catch (error) {
    $("error").textContent = error.message;
  }
}

start();
