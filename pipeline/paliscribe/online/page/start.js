// What the user does, and what happens then.
const on = (id, kind, act) => $(id).addEventListener(kind, act);

on("form", "input", refresh);
on("form", "submit", ask);
on("sign-in", "submit", signIn);
on("forget", "click", forget);
on("stop", "click", () => { running?.abort(); $("ask").focus(); });
on("copy", "click", copy);
for (const radio of document.querySelectorAll("input[name=lines]")) radio.addEventListener("change", refreshCode);
for (const id of ["choose", "zone"]) on(id, "click", () => $("file").click());
on("file", "change", () => {
  const [file] = $("file").files;
  if (file) choose(file);
  $("file").value = ""; // so that the same file can be selected again
});
on("clear", "click", clearHistory);
on("by-address", "click", () => {
  const hidden = $("address-form").hidden = !$("address-form").hidden;
  $("by-address").setAttribute("aria-expanded", !hidden);
  if (!hidden) $("address").focus();
});
on("address-form", "submit", useAddress);
$("camera").hidden = !navigator.mediaDevices?.getUserMedia; // which needs https or localhost
on("camera", "click", openCamera);
on("shoot", "click", shoot);
on("close-camera", "click", () => $("camera-dialog").close());
on("camera-dialog", "close", stopCamera);
on("tabs", "keydown", turnTabs);
on("show-boxes", "change", () => decorate(picture?.current?.record || null));
on("threshold", "input", () => {
  list(picture?.current?.record || null);
  decorate(picture?.current?.record || null);
});
on("larger", "click", () => setZoom(zoom * STEP));
on("smaller", "click", () => setZoom(zoom / STEP));
on("fit", "click", () => setZoom(1));
on("viewport", "pointerdown", pan);
on("viewport", "wheel", (event) => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  setZoom(event.deltaY < 0 ? zoom * STEP : zoom / STEP);
});
on("viewport", "dblclick", () => setZoom(zoom === 1 ? 2 : 1));
let width = innerWidth;
addEventListener("resize", () => {
  if (zoom > 1 && innerWidth !== width) setZoom(1); // a phone's bars change the height only
  width = innerWidth;
});
on("save-png", "click", savePng);
on("save-json", "click", saveJson);
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) choose(file);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    if (kind !== "dragleave") event.preventDefault(); // else the browser navigates to the file
    document.body.classList.toggle("over", kind === "dragover");
    if (kind === "drop") choose(event.dataTransfer.files[0]);
  });
}
shelve();
refresh();
loadModels().catch((error) => { if ($("sign-in").hidden) say("error", error.message); });
