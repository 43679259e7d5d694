// Pictures: examples, files, drops, the clipboard, addresses and the camera; each keeps its answers.
const EXAMPLES = [
  { file: "shapes.jpg", name: "Shapes", words: "a star, two squares and a triangle on a light ground",
    prompts: ["detect red triangle ; blue star", "caption en", "answer en how many squares are there?",
      "answer en what color is the star?"] },
  { file: "number.jpg", name: "Number", words: "a yellow circle and a green triangle above a printed number",
    prompts: ["ocr", "caption en", "detect circle", "answer en what shape is yellow?"] },
  { file: "handwriting.jpg", name: "Handwriting", words: "an orange star and an orange square above handwritten digits",
    prompts: ["ocr", "caption en", "detect square", "answer en is there an orange star?"] },
];
const own = []; // the user's pictures, newest first
const examples = new Map(); // file name -> picture
let picture = null; // { name, file, address, example, url, shown, answers, current }
let latest = null; // what was selected last, which may not be an image
let stream = null; // of the camera

// Load a file from the file dialogue, a drop, the clipboard or the camera.
async function choose(file) {
  const begun = latest = file;
  const url = URL.createObjectURL(file), shown = await isShown(url);
  if (latest !== begun) return URL.revokeObjectURL(url);
  if (!shown && !file.type.startsWith("image/")) {
    say("error", `${file.name} is not an image.`);
    return URL.revokeObjectURL(url);
  }
  return add({ name: file.name, file, url, shown });
}

async function useAddress(event) {
  event.preventDefault();
  const address = latest = $("address").value.trim();
  const shown = address.startsWith("http") && await isShown(address);
  if (latest !== address) return;
  add({ name: address, address, url: address, shown });
}

async function useExample(example) {
  latest = example;
  if (!examples.has(example.file)) {
    try {
      const reply = await call(`examples/${example.file}`);
      const file = new File([await reply.blob()], example.file, { type: "image/jpeg" });
      examples.set(example.file, made({ name: example.file, file, example, url: URL.createObjectURL(file), shown: true }));
    } catch (error) {
      say("error", error.message);
      return;
    }
  }
  if (latest !== example) return;
  open(examples.get(example.file));
  const [first] = suggestions();
  if (first && !picture.answers.length) askFor(first);
}

function isShown(url) {
  const probe = new Image();
  probe.src = url;
  return probe.decode().then(() => true, () => false);
}

const made = (values) => ({ answers: [], current: null, ...values });

function add(values) {
  own.unshift(made(values));
  open(own[0]);
}

// Show a picture with its answers.
function open(chosen) {
  stopRunning();
  picture = chosen;
  say("error", "");
  place();
  shelve();
  showAnswer();
  refresh();
}

// The two strips of pictures.
function shelve() {
  $("examples").replaceChildren(...EXAMPLES.map((example) => {
    const pressed = Boolean(picture) && picture.example === example;
    return tile(example.name, example.words, `examples/${example.file}`, pressed, () => useExample(example));
  }));
  $("own").replaceChildren(...own.map((one) => {
    const words = `${one.name}, ${one.answers.length} ${one.answers.length === 1 ? "answer" : "answers"}`;
    return tile(one.name, words, one.shown ? one.url : "", one === picture, () => open(one));
  }));
  $("history").hidden = !own.length;
}

function tile(name, words, url, pressed, act) {
  const item = element("li"), button = element("button", "", { type: "button", title: words });
  const image = url ? element("img", "", { src: url, alt: words }) : element("span", "", { className: "none" });
  button.append(image, element("span", name));
  button.setAttribute("aria-pressed", pressed);
  button.addEventListener("click", () => {
    const place = [...item.parentElement.children].indexOf(item), { id } = item.parentElement;
    act();
    $(id).children[place]?.firstElementChild.focus(); // the strip was made anew
  });
  item.append(button);
  return item;
}

function clearHistory() {
  const gone = own.splice(0);
  if (gone.includes(picture)) {
    stopRunning();
    picture = null;
    place();
    showAnswer();
  }
  for (const one of gone) if (one.file) URL.revokeObjectURL(one.url);
  shelve();
  refresh();
  $("choose").focus();
}

// The prompts of an example that the model can answer.
function suggestions() {
  const { tasks } = abilities();
  return (picture?.example?.prompts || []).filter((prompt) => tasks.includes(prompt.split(" ")[0]));
}

async function openCamera() {
  say("camera-words", "");
  $("video").hidden = $("shoot").hidden = false;
  $("camera-dialog").showModal();
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    $("video").srcObject = stream;
    if (!$("camera-dialog").open) stopCamera();
  } catch (error) {
    $("video").hidden = $("shoot").hidden = true;
    const refused = error.name === "NotAllowedError";
    say("camera-words", refused ? "The browser does not let this page use the camera." : "There is no camera to use.");
  }
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = $("video").srcObject = null;
}

async function shoot() {
  const { videoWidth: width, videoHeight: height } = $("video");
  if (!width) return say("camera-words", "The camera has not begun; wait a moment.");
  const canvas = element("canvas", "", { width, height });
  canvas.getContext("2d").drawImage($("video"), 0, 0);
  const blob = await new Promise((resolve) => { canvas.toBlob(resolve, "image/jpeg", 0.92); });
  $("camera-dialog").close();
  return choose(new File([blob], `camera-${own.length + 1}.jpg`, { type: "image/jpeg" }));
}
