"use strict";
// Calls of the endpoint: the key, the models and what they can do, errors in words.
const KEY = "paliscribe-key"; // in sessionStorage
const UNREACHABLE = "The server is unreachable. It may have stopped, or the network may be down; try again.";
const BROKEN = "The answer was interrupted: connection to the server lost. The part received is shown; ask again.";
const $ = (id) => document.getElementById(id);
let models = []; // as /v1/models lists them
let addresses = []; // prefixes of the addresses that images may have

const say = (id, words) => { $(id).textContent = words; };
const keyed = () => sessionStorage.getItem(KEY) || !$("sign-in").hidden; // whether the endpoint requires a key

function element(name, words = "", properties = {}) {
  const made = Object.assign(document.createElement(name), properties);
  if (words) made.textContent = words;
  return made;
}

// Send one request. Throws an Error with a user-readable message, or an AbortError.
async function call(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let reply;
  try {
    reply = await fetch(path, { ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error(UNREACHABLE);
  }
  if (reply.ok) return reply;
  let words = `The server answered ${reply.status}.`;
  try {
    words = (await reply.json()).error.message;
  } catch { /* no JSON error body */ }
  const wait = reply.headers.get("Retry-After");
  if (reply.status === 401) {
    if (key) words = `Key rejected: ${words}`;
    sessionStorage.removeItem(KEY);
    askForKey(key ? words : "");
    refresh();
  }
  throw new Error(wait ? `${words} (try again in ${wait} s)` : words);
}

async function loadModels() {
  ({ data: models, image_addresses: addresses } = await (await call("v1/models")).json());
  $("model").replaceChildren(...models.map((model) => new Option(model.id)));
  $("sign-in").hidden = true;
  $("by-address").hidden = !addresses.length;
  say("allowed", `Allowed are addresses below ${addresses.join(", ")}`);
  refresh();
}

// What the chosen model can do.
function abilities() {
  const found = models.find((model) => model.id === $("model").value);
  return found || { tasks: Object.keys(TASKS), languages: [], about: "" };
}

function askForKey(words) {
  say("key-words", words);
  $("sign-in").hidden = false;
  $("key").focus();
  $("key").select();
}

async function signIn(event) {
  event.preventDefault();
  const key = $("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(key)) return askForKey("A key must be printable ASCII without spaces.");
  sessionStorage.setItem(KEY, key);
  say("error", "");
  try {
    await loadModels();
    $("key").value = "";
    (picture ? $("ask") : $("zone")).focus();
  } catch (error) {
    say("key-words", error.message);
  }
  return undefined;
}

function forget() {
  sessionStorage.removeItem(KEY);
  location.reload();
}

// Read the events of a stream. Calls `heard` with each piece of text; returns the record.
async function follow(reply, heard) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", record = null;
  for (;;) {
    const part = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Error(BROKEN);
    });
    if (part.done) throw new Error(BROKEN);
    const events = (rest + part.value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return record;
      const { text, annotation, error } = JSON.parse(data);
      if (error) throw new Error(`The answer was interrupted: ${error.message}`);
      if (text) heard(text);
      if (annotation) record = annotation;
    }
  }
}
