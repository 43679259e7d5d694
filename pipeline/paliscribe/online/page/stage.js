// The stage: the picture with boxes and masks over it, zoom, and the same as a PNG.
const COLORS = ["#0b5cad", "#b4380b", "#15713a", "#86198f", "#7a5200", "#be123c", "#0f6b70", "#5b3fc4"];
const MASK_SIDE = 1600; // largest side of the mask canvas, in pixels
const PNG_SIDE = 4096; // largest side of a saved picture, in pixels
const STEP = 1.5, MOST = 12; // of the zoom
let zoom = 1;

const percent = (share) => `${(100 * share).toFixed(0)} %`;
const threshold = () => Number($("threshold").value) / 100;
const isShownBox = (box) => box.score === null || Math.round(100 * box.score) >= 100 * threshold();

// Show the current picture, without boxes.
function place() {
  $("zone").hidden = Boolean(picture) && picture.shown;
  $("zone").querySelector("b").textContent = picture ? "Choose another picture" : "Choose a picture";
  $("tools").hidden = !picture;
  $("viewport").hidden = !picture?.shown;
  $("stage").className = "";
  say("name", "");
  if (!picture) return;
  const { name, shown, address } = picture;
  $("picture").src = shown ? picture.url : "";
  $("picture").alt = picture.example?.words || name;
  const cannot = address ? `This page cannot show ${name}.` : `This browser cannot show ${name}.`;
  say("name", shown ? name : `${cannot} The server may be able to read it.`);
  setZoom(1);
}

function setZoom(wanted) {
  const view = $("viewport");
  const x = (view.scrollLeft + view.clientWidth / 2) / view.scrollWidth;
  const y = (view.scrollTop + view.clientHeight / 2) / view.scrollHeight;
  view.classList.remove("zoomed");
  $("stage").style.width = "";
  const fit = $("stage").clientWidth;
  zoom = Math.min(MOST, Math.max(1, wanted));
  if (zoom > 1) {
    view.classList.add("zoomed");
    $("stage").style.width = `${fit * zoom}px`;
    view.scrollLeft = x * view.scrollWidth - view.clientWidth / 2;
    view.scrollTop = y * view.scrollHeight - view.clientHeight / 2;
    view.tabIndex = 0; // scrolled by keyboard
  } else {
    view.removeAttribute("tabindex");
  }
  $("smaller").setAttribute("aria-disabled", zoom === 1);
  $("larger").setAttribute("aria-disabled", zoom === MOST);
  say("fit", zoom === 1 ? "Fit" : percent(zoom));
  $("fit").setAttribute("aria-label", zoom === 1 ? "Fit" : `${percent(zoom)}, back to fit`);
}

function pan(event) {
  const view = $("viewport");
  if (zoom === 1 || event.pointerType === "touch") return;
  event.preventDefault(); // no dragging of the image itself
  view.setPointerCapture(event.pointerId);
  view.classList.add("panning");
  const move = ({ movementX, movementY }) => view.scrollBy({ left: -movementX, top: -movementY, behavior: "instant" });
  view.addEventListener("pointermove", move);
  view.addEventListener("lostpointercapture", () => {
    view.removeEventListener("pointermove", move);
    view.classList.remove("panning");
  }, { once: true });
}

function colorsOf(record) {
  const labels = [...new Set(record.boxes.map((box) => box.label))];
  return (label) => COLORS[labels.indexOf(label) % COLORS.length];
}

// Draw boxes and masks of a record over the picture; null: none.
function decorate(record) {
  $("boxes").replaceChildren();
  $("mask").width = $("mask").height = 0;
  $("boxes-choice").hidden = !record?.boxes.length;
  if (!record || !picture) return;
  if (!picture.shown && record.boxes.length) { // its proportions, at least
    $("viewport").hidden = false;
    $("stage").className = "blank";
    $("stage").style.setProperty("--ratio", `${record.width} / ${record.height}`);
    $("stage").style.setProperty("--blank", `${46 * record.width / record.height}vh`);
  }
  if (!$("show-boxes").checked) return;
  const color = colorsOf(record);
  const shown = record.boxes.map(isShownBox);
  paint(record.masks.filter((mask, number) => mask.rle && shown[number] !== false), color, $("mask"));
  const frames = record.boxes.map((box) => frame(box, record, color(box.label)));
  $("boxes").replaceChildren(...frames.filter((_, number) => shown[number]));
}

// A box over the picture, with relative coordinates, so that it scales with the picture.
function frame(box, { width, height }, color) {
  const made = element("div", "", { className: "box" });
  made.style.left = `${100 * box.x_min / width}%`;
  made.style.top = `${100 * box.y_min / height}%`;
  made.style.width = `${100 * (box.x_max - box.x_min) / width}%`;
  made.style.height = `${100 * (box.y_max - box.y_min) / height}%`;
  made.style.setProperty("--color", color);
  made.classList.toggle("right", box.x_min + box.x_max > width);
  made.classList.toggle("inside", box.y_min / height * $("stage").clientHeight < 24);
  made.append(element("span", titleOf(box)));
  return made;
}

const titleOf = (box) => (box.score === null ? box.label : `${box.label} ${percent(box.score)}`);

// Decode COCO's uncompressed RLE, background first, to one byte per pixel, column-major.
function decodeRle(counts, height, width) {
  const bits = new Uint8Array(height * width);
  let at = 0;
  counts.forEach((count, number) => bits.fill(number % 2, at, at += count));
  if (at !== bits.length) throw new Error(`A mask covers ${at} pixels of ${bits.length}.`);
  return bits;
}

function paint(masks, color, canvas) {
  if (!masks.length) return;
  const { width, height } = masks[0], scale = Math.min(1, MASK_SIDE / Math.max(width, height));
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  for (const mask of masks) {
    const bits = decodeRle(mask.rle, height, width);
    const rgb = color(mask.label).match(/\w\w/g).map((hex) => parseInt(hex, 16));
    for (let x = 0; x < canvas.width; x++) {
      const column = Math.floor((x + 0.5) * width / canvas.width) * height;
      for (let y = 0; y < canvas.height; y++) {
        if (!bits[column + Math.floor((y + 0.5) * height / canvas.height)]) continue;
        const at = 4 * (y * canvas.width + x);
        [image.data[at], image.data[at + 1], image.data[at + 2], image.data[at + 3]] = [...rgb, 140];
      }
    }
  }
  context.putImageData(image, 0, 0);
}

// The picture with what is drawn over it, as a canvas.
function drawn(record) {
  const width = record?.width || $("picture").naturalWidth, height = record?.height || $("picture").naturalHeight;
  const scale = Math.min(1, PNG_SIDE / Math.max(width, height));
  const canvas = element("canvas", "", { width: Math.round(width * scale), height: Math.round(height * scale) });
  const context = canvas.getContext("2d"), size = Math.max(12, Math.round(Math.max(canvas.width, canvas.height) / 45));
  if (picture.shown) context.drawImage($("picture"), 0, 0, canvas.width, canvas.height);
  if (!record || !$("show-boxes").checked) return canvas;
  if ($("mask").width) context.drawImage($("mask"), 0, 0, canvas.width, canvas.height);
  const color = colorsOf(record);
  context.font = `${size}px sans-serif`;
  context.textBaseline = "middle";
  for (const box of record.boxes.filter(isShownBox)) {
    const [left, top, right, bottom] = [box.x_min, box.y_min, box.x_max, box.y_max].map((edge) => edge * scale);
    const words = titleOf(box), across = context.measureText(words).width + size;
    for (const [ink, line] of [["#fff", size / 3], [color(box.label), size / 5]]) {
      context.strokeStyle = ink;
      context.lineWidth = line;
      context.strokeRect(left, top, right - left, bottom - top);
    }
    const x = Math.max(0, Math.min(left, canvas.width - across)), y = Math.max(0, top - 1.6 * size);
    context.fillStyle = color(box.label);
    context.fillRect(x, y, across, 1.6 * size);
    context.fillStyle = "#fff";
    context.fillText(words, x + size / 2, y + 0.85 * size);
  }
  return canvas;
}
