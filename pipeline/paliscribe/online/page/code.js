// The same call as lines for a shell and for Python.
const quoted = (word) => `'${word.replaceAll("'", "'\\''")}'`; // for a shell
const at = (path) => new URL(path, location.href).href;
const nameOf = () => (picture?.file ? picture.file.name : "picture.jpg");

function refreshCode() {
  const prompt = task().prompt(), model = $("model").value, shown = $("form").elements.task && chosenLines();
  say("curl", curl(prompt, model));
  say("python", python(prompt, model));
  for (const name of ["curl", "python"]) $(name).hidden = name !== shown;
  say("copied", "");
}

const chosenLines = () => document.querySelector("input[name=lines]:checked").value;

function curl(prompt, model) {
  const words = ["curl -sS"];
  if (keyed()) words.push('-H "Authorization: Bearer $KEY"');
  if (picture?.address) {
    const body = { images: [picture.address], tasks: [prompt], ...(model && { model }) };
    words.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(body))}`);
    return [...words, quoted(at("v1/annotate"))].join(" \\\n  ");
  }
  const name = nameOf();
  const file = /^[\w.][\w. -]*$/.test(name) ? name : `"${name.replace(/[\\"]/g, "\\$&")}"`; // curl's own quotes
  words.push(`-F ${quoted(`image=@${file}`)}`, `--form-string ${quoted(`task=${prompt}`)}`);
  if (model) words.push(`--form-string ${quoted(`model=${model}`)}`);
  const first = picture?.example ? `curl -sSO ${quoted(at(`examples/${name}`))} &&\n` : "";
  return first + [...words, quoted(at("v1/annotate/upload"))].join(" \\\n  ");
}

function python(prompt, model) {
  const text = JSON.stringify, { address, example } = picture || {};
  const lines = keyed() ? ["import os", "", "import requests", ""] : ["import requests", ""];
  const last = keyed() ? ['    headers={"Authorization": f"Bearer {os.environ[\'KEY\']}"},'] : [];
  if (address) {
    lines.push("reply = requests.post(", `    ${text(at("v1/annotate"))},`);
    lines.push(`    json={"images": [${text(address)}], "tasks": [${text(prompt)}]${model ? `, "model": ${text(model)}` : ""}},`);
  } else {
    const name = nameOf();
    const read = example ? `requests.get(${text(at(`examples/${name}`))}).content` : `open(${text(name)}, "rb").read()`;
    lines.push(`picture = ${read}`, "reply = requests.post(", `    ${text(at("v1/annotate/upload"))},`);
    lines.push(`    files={"image": (${text(name)}, picture)},`);
    lines.push(`    data={"task": ${text(prompt)}${model ? `, "model": ${text(model)}` : ""}},`);
  }
  return [...lines, ...last, ")", "print(reply.text)"].join("\n");
}

async function copy() {
  const lines = $(chosenLines());
  getSelection().selectAllChildren(lines);
  let copied = true;
  try {
    await navigator.clipboard.writeText(lines.textContent);
  } catch { // the clipboard API needs https or localhost
    copied = document.execCommand("copy");
  }
  const done = copied ? "Copied." : "Selected: copy it with your keyboard.";
  say("copied", keyed() ? `${done} Set KEY to your API key before you run it.` : done);
}
