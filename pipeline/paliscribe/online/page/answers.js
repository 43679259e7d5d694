// Questions and answers: the prompt, the stream, tabs, and answers in words.
const TASKS = {
  caption: { fields: ["language"], prompt: () => `caption ${value("language")}` },
  answer: { fields: ["question", "language"], prompt: () => `answer ${value("language")} ${value("question")}` },
  ocr: { fields: [], prompt: () => "ocr" },
  detect: { fields: ["things"], prompt: () => `detect ${things()}` },
  segment: { fields: ["things"], prompt: () => `segment ${things()}` },
  free: { fields: ["free"], prompt: () => value("free") },
};
const FIELDS = ["question", "things", "free", "language"];
const CODES = /<(?:loc\d{4}|seg\d{3})>/g;
let running = null; // the AbortController of the request in flight

const value = (id) => $(id).value.trim().replace(/\s+/g, " ");
const things = () => value("things").split(";").map((thing) => thing.trim()).filter(Boolean).join(" ; ");
const task = () => TASKS[$("form").elements.task.value];
const isPlaces = (prompt) => /^(detect|segment) /i.test(prompt);

// Update what depends on the form: fields, what the model can do, the code.
function refresh() {
  const { tasks, languages, about } = abilities();
  for (const radio of $("form").elements.task) radio.parentElement.hidden = !tasks.includes(radio.value);
  if (!tasks.includes($("form").elements.task.value)) $("form").elements.task.value = tasks[0];
  if (languages.length === 1) $("language").value = languages[0];
  for (const id of FIELDS) {
    const used = task().fields.includes(id);
    $(id).disabled = !used;
    $(id).parentElement.hidden = !used || (id === "language" && languages.length === 1);
  }
  $("model").parentElement.hidden = models.length < 2;
  say("about", about);
  const prompts = suggestions();
  $("suggestions").hidden = !prompts.length;
  $("suggestions").replaceChildren(...prompts.map((prompt) => {
    const button = element("button", titleOfPrompt(prompt), { type: "button", className: "try" });
    button.addEventListener("click", () => askFor(prompt));
    return button;
  }));
  refreshCode();
  $("forget").hidden = !sessionStorage.getItem(KEY);
}

// A prompt in words, for a tab.
function titleOfPrompt(prompt) {
  const [, kind, rest] = prompt.match(/^(\S*) ?(.*)$/s);
  if (kind === "caption") return rest === "en" ? "Caption" : `Caption (${rest})`;
  if (kind === "ocr") return "Text";
  if (kind === "answer") return rest.replace(/^\S+ (.)/s, (_, letter) => letter.toUpperCase());
  if (kind === "detect") return `Find ${rest.replaceAll(" ;", ",")}`;
  if (kind === "segment") return `Outline ${rest.replaceAll(" ;", ",")}`;
  return prompt;
}

// Fill the form so that it gives this prompt.
function fill(prompt) {
  const [, kind, rest] = prompt.match(/^(\S*) ?(.*)$/s), [, language, question] = rest.match(/^(\S*) ?(.*)$/s);
  if (kind === "answer") [$("language").value, $("question").value] = [language, question];
  if (kind === "caption") $("language").value = rest;
  if (kind === "detect" || kind === "segment") $("things").value = rest;
  $("form").elements.task.value = kind in TASKS ? kind : "free";
  if (task().prompt() !== prompt) {
    $("free").value = prompt;
    $("form").elements.task.value = "free";
  }
  refresh();
}

function askFor(prompt) {
  fill(prompt);
  ask();
}

function dataUrl(file) {
  const typed = file.type.startsWith("image/") ? file : new Blob([file]);
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} can no longer be read from your disk; choose it again.`));
    reader.readAsDataURL(typed);
  });
}

async function ask(event) {
  event?.preventDefault();
  if (running) return;
  say("error", "");
  if (!picture) {
    say("error", "Choose a picture first.");
    $("zone").focus();
    return;
  }
  const prompt = task().prompt(), asked = picture;
  const answer = { prompt, model: $("model").value, text: "", record: null, error: "", status: "Asking …" };
  const same = asked.answers.findIndex((other) => other.prompt === prompt && other.model === answer.model);
  asked.answers.splice(same < 0 ? asked.answers.length : same, same < 0 ? 0 : 1, answer);
  asked.current = answer;
  const begun = Date.now(), controller = running = new AbortController(), { signal } = controller;
  busy(true);
  shelve();
  const update = () => { if (picture === asked && asked.current === answer) showAnswer(); };
  update();
  bringIntoView();
  try {
    if (!answer.model) {
      await loadModels();
      answer.model = $("model").value;
    }
    const image = asked.address || await dataUrl(asked.file);
    const body = JSON.stringify({ images: [image], tasks: [prompt], model: answer.model, stream: true });
    const reply = await call("v1/annotate", { method: "POST", headers: { "Content-Type": "application/json" }, body, signal });
    answer.record = await follow(reply, (text) => { answer.text += text; update(); });
    answer.text = answer.record.text;
    answer.status = [...facts(answer.record), `${((Date.now() - begun) / 1e3).toFixed(2)} s`].join(" · ");
    if (answer.record.status === "invalid") answer.error = "Part of the answer is malformed; the rest is shown.";
  } catch (error) {
    answer.status = error.name === "AbortError" ? "Stopped." : "";
    if (error.name !== "AbortError") answer.error = error.message;
  } finally {
    if (running === controller) stopRunning();
    update();
    shelve();
  }
}

function busy(on) {
  $("ask").setAttribute("aria-disabled", on); // a disabled button would lose the focus
  $("answer").setAttribute("aria-busy", on);
  $("stop").hidden = !on;
}

// Cancel the request in flight, if there is one.
function stopRunning() {
  running?.abort();
  running = null;
  busy(false);
}

// On a phone the picture and its answer are below the form.
function bringIntoView() {
  const { top, bottom } = $("status").getBoundingClientRect();
  if (top < 0 || bottom > innerHeight) (picture.shown ? $("tools") : $("status")).scrollIntoView({ block: "start" });
}

// Show the current answer of the picture: tab, words, boxes.
function showAnswer() {
  const answer = picture?.current || null;
  const answers = picture?.answers || [];
  $("tabs").hidden = !answers.length;
  $("tabs").replaceChildren(...answers.map(tab));
  if (answer) {
    $("answer").setAttribute("role", "tabpanel");
    $("answer").setAttribute("aria-labelledby", $("tabs").querySelector("[aria-selected=true]").id);
  } else {
    for (const name of ["role", "aria-labelledby"]) $("answer").removeAttribute(name);
  }
  const record = answer?.record || null;
  if (answer?.error) say("error", answer.error);
  else if (answer) say("error", "");
  const shown = answer ? words(answer) : "";
  if ($("text").textContent !== shown) say("text", shown);
  say("status", answer ? answer.status : picture ? "Ask about it." : "The answer will be here.");
  $("saving").hidden = $("raw").hidden = !record;
  say("raw-text", record?.text || "");
  say("raw-facts", record ? rawFacts(record) : "");
  list(record);
  decorate(record);
  refreshCode();
}

function tab(answer, number) {
  const words = titleOfPrompt(answer.prompt), chosen = answer === picture.current;
  const more = models.length > 1 ? ` · ${answer.model}` : "";
  const made = element("button", words + more, { type: "button", id: `tab-${number}`, tabIndex: chosen ? 0 : -1, title: words });
  made.setAttribute("role", "tab");
  made.setAttribute("aria-selected", chosen);
  made.setAttribute("aria-controls", "answer");
  made.addEventListener("click", () => select(number));
  return made;
}

function select(number) {
  const { answers } = picture;
  picture.current = answers[(number + answers.length) % answers.length];
  if ([...$("model").options].some((option) => option.value === picture.current.model)) $("model").value = picture.current.model;
  fill(picture.current.prompt);
  showAnswer();
  const chosen = $("tabs").querySelector("[aria-selected=true]");
  chosen.focus();
  chosen.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function turnTabs(event) {
  const at = picture.answers.indexOf(picture.current);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: -1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  select(to);
}

// An answer as a person says it.
function words({ prompt, text, record, error }) {
  if (!isPlaces(prompt)) {
    return text.replace(CODES, "") || (record && (prompt === "ocr" ? "No text found." : "An empty answer.")) || "";
  }
  if (!record) return text.replace(CODES, "").replace(/[\s;]+$/, "").replace(/\s*;\s*/g, ", ").trim();
  const counts = new Map();
  for (const { label } of record.boxes) counts.set(label, (counts.get(label) || 0) + 1);
  if (!counts.size) return error ? "" : "Nothing found.";
  return `Found ${[...counts].map(([label, count]) => (count > 1 ? `${label} × ${count}` : label)).join(", ")}.`;
}

function list(record) {
  const boxes = record?.boxes || [], color = record && colorsOf(record);
  $("found").replaceChildren(...boxes.filter(isShownBox).map((box, place) => item(box, color(box.label), place)));
  $("filter").hidden = !boxes.some((box) => box.score !== null);
  const hidden = boxes.filter((box) => !isShownBox(box)).length;
  say("threshold-value", percent(threshold()) + (hidden ? `, ${hidden} hidden` : ""));
}

function item(box, color, place) {
  const made = element("li");
  made.style.setProperty("--color", color);
  const corners = [box.x_min, box.y_min, box.x_max, box.y_max].map(Math.round).join(", ");
  const where = element("span", corners, { className: "quiet", title: "left, top, right, bottom in pixels of the picture" });
  made.append(element("i"), element("b", box.label), element("span", box.score === null ? "" : percent(box.score)), where);
  for (const kind of ["pointerenter", "pointerleave"]) {
    made.addEventListener(kind, () => $("boxes").children[place]?.classList.toggle("on", kind === "pointerenter"));
  }
  return made;
}

function facts(record) {
  const said = [];
  if (record.score !== null) said.push(`score ${percent(record.score)}`);
  if (record.finish_reason === "length") said.push("cut off at the limit of tokens");
  if (record.masks.some((mask) => !mask.rle)) said.push("boxes only: this server has no mask decoder");
  return said;
}

function rawFacts(record) {
  const said = [`Prompt: ${record.prompt}`, `${record.tokens} ${record.tokens === 1 ? "token" : "tokens"}`];
  if (record.error_message) said.push(record.error_message);
  return [...said, `${record.model} at ${record.revision}`].join(" · ");
}

function save(blob, ending) {
  const stem = (picture.name.split(/[/\\]/).pop() || "picture").replace(/\.\w+$/, "");
  const url = URL.createObjectURL(blob);
  element("a", "", { href: url, download: `${stem}.${ending}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1e4);
}

const saveJson = () => save(new Blob([JSON.stringify(picture.current.record, null, 2), "\n"], { type: "application/json" }), "json");

function savePng() {
  try {
    drawn(picture.current.record).toBlob((blob) => save(blob, "png"), "image/png");
  } catch (error) { // a picture from another host
    if (error.name !== "SecurityError") throw error;
    say("error", "The host of this picture does not let a page copy it.");
  }
}
