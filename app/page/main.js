// The page: which model and which picture, one question to the service at a time, and its answer.

import { describeModel, index, listModels, predict, Problem, processFacts, useKey } from "./api.js";
import { Boxes } from "./boxes.js";
import { cameraIsThere, setUpCamera } from "./camera.js";
import { command } from "./command.js";
import { byId, element, percent, show } from "./dom.js";
import { aboutModel, showClasses, showPeople, showSizes, showTiming } from "./results.js";
import { drawPeople } from "./skeleton.js";

const SETTLE_MS = 250;

let card = null; // the chosen model, as the service describes it
let picture = null; // the chosen File
let answer = null; // what the service said last, for this model and picture
let asking = new AbortController(); // the request under way
let settling = 0;

const isPose = () => card?.task === "pose";
const boxes = new Boxes({ settled: () => askSoon() });
const parameters = () => ({ topK: Number(byId("top-k").value) || 1, boxes: isPose() ? boxes.all : [] });

// ---- Models and key --------------------------------------------------------------------------------------------------

async function loadModels() {
  try {
    const { models, default: standard } = await listModels();
    const wanted = byId("model").value;
    byId("model").replaceChildren(...choices(models));
    const names = models.map(({ name }) => name);
    byId("model").value = names.includes(wanted) ? wanted : standard ?? names[0] ?? "";
    hideProblem();
    if (names.length) await chooseModel();
    else byId("model-about").textContent = "This service has no models.";
  } catch (error) {
    showProblem(error);
  }
}

/** An option a model, grouped by task where there are several. */
function choices(models) {
  const option = ({ name }) => element("option", { value: name }, name);
  const tasks = [...new Set(models.map(({ task }) => task ?? "not loaded"))];
  if (tasks.length === 1) return models.map(option);
  return tasks.map((task) =>
    element("optgroup", { label: task }, ...models.filter((model) => (model.task ?? "not loaded") === task).map(option)),
  );
}

async function chooseModel() {
  const name = byId("model").value;
  let described;
  try {
    described = await describeModel(name);
  } catch (error) {
    showProblem(error);
    return;
  }
  if (byId("model").value !== name) return; // another was chosen meanwhile
  card = described;
  byId("model-about").textContent = aboutModel(card);
  show(byId("top-k-field"), card.task === "classification");
  for (const id of ["boxes", "overlay", "box-help", "add-box"]) show(byId(id), isPose() && Boolean(picture));
  show(byId("clear-boxes"), isPose() && boxes.all.length > 0);
  showCommand();
  const asked = ask(); // before anything is waited for: a picture that comes meanwhile is asked about once
  showSizes(described.sizes, await processFacts());
  await asked;
}

function openKeyPanel(open) {
  show(byId("key-panel"), open);
  byId("key-button").setAttribute("aria-expanded", String(open));
  if (open) byId("key").focus();
}

// ---- The picture -----------------------------------------------------------------------------------------------------

async function choosePicture(file) {
  picture = file;
  answer = null;
  const shown = byId("shown");
  URL.revokeObjectURL(shown.src);
  shown.src = URL.createObjectURL(file);
  const visible = await shown.decode().then(() => true, () => false);
  if (picture !== file) return;
  show(byId("empty"), false);
  show(byId("frame"), visible);
  show(byId("no-preview"), !visible);
  byId("stage").classList.toggle("filled", visible);
  if (visible) {
    const { naturalWidth: width, naturalHeight: height } = shown;
    shown.alt = `Your picture: ${file.name}`;
    byId("frame").style.aspectRatio = `${width} / ${height}`;
    byId("frame").style.maxWidth = `calc(68vh * ${width / height})`;
    boxes.reset({ width, height });
  }
  for (const id of ["boxes", "overlay", "box-help", "add-box"]) show(byId(id), isPose() && visible);
  show(byId("clear-boxes"), false);
  redraw();
  showCommand();
  await ask();
}

async function chooseExample(name) {
  const blob = await (await fetch(`page/${name}`)).blob();
  await choosePicture(new File([blob], name, { type: blob.type }));
}

function redraw() {
  const people = isPose() ? answer?.people ?? [] : [];
  const canvas = byId("overlay");
  drawPeople(canvas, { image: answer?.image ?? { width: 1, height: 1 }, people, skeleton: answer?.skeleton ?? [] });
  canvas.setAttribute("aria-label", people.length ? `Skeletons of ${people.length} over the picture` : "No skeleton yet");
}

// ---- Question and answer ---------------------------------------------------------------------------------------------

function askSoon() {
  show(byId("clear-boxes"), isPose() && boxes.all.length > 0);
  showCommand();
  clearTimeout(settling);
  settling = setTimeout(ask, SETTLE_MS);
}

/** Ask the service about the picture; an earlier question that is still open is withdrawn. */
async function ask() {
  clearTimeout(settling);
  asking.abort();
  if (!picture || !card) return;
  asking = new AbortController();
  const { signal } = asking;
  byId("answer").classList.add("busy");
  byId("answer").setAttribute("aria-busy", "true");
  try {
    const { answer: found, roundTripMs } = await predict(card, picture, parameters(), signal);
    answer = found;
    hideProblem();
    showAnswer(roundTripMs);
    showSizes(card.sizes, await processFacts());
  } catch (error) {
    if (error.name === "AbortError") return;
    answer = null;
    clearAnswer();
    showProblem(error);
  } finally {
    if (asking.signal === signal) {
      byId("answer").classList.remove("busy");
      byId("answer").removeAttribute("aria-busy");
    }
  }
}

function showAnswer(roundTripMs) {
  show(byId("waiting"), false);
  if (answer.people) {
    showPeople(answer.people);
    const count = answer.people.length;
    announce(`${count} ${count === 1 ? "person" : "people"} found.`);
  } else {
    showClasses(answer.predictions);
    announce(answer.predictions.map(({ label, score }) => `${label}, ${percent(score)}`).join("; "));
  }
  redraw();
  showTiming(answer.timing_ms, roundTripMs);
}

function clearAnswer() {
  for (const id of ["bars", "people", "timing"]) show(byId(id), false);
  show(byId("waiting"));
  byId("waiting").textContent = "No answer to this picture.";
  announce("");
  redraw();
}

const announce = (text) => {
  byId("announcement").textContent = text;
};

function showCommand() {
  if (card) byId("command-text").textContent = command(card, picture?.name ?? "photo.jpg", parameters());
}

function showProblem(error) {
  if (!(error instanceof Problem)) throw error;
  const again = error.retryAfterS ? ` Try again in ${error.retryAfterS} s.` : "";
  byId("error-title").textContent = error.title;
  byId("error-detail").textContent = error.message + again;
  byId("error-id").textContent = error.requestId ? `Request ${error.requestId}` : "";
  show(byId("error"));
  show(byId("retry"), error.status === 0 || error.status === 429 || error.status >= 500);
  if (error.status === 401) openKeyPanel(true);
}

const hideProblem = () => show(byId("error"), false);

// ---- Wiring ----------------------------------------------------------------------------------------------------------

const firstFile = (list) => [...(list ?? [])][0];

function takePicturesFromEverywhere() {
  byId("choose").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", () => {
    const file = firstFile(byId("file").files);
    byId("file").value = ""; // the same file may be chosen again
    if (file) choosePicture(file);
  });
  document.addEventListener("paste", (event) => {
    const file = firstFile(event.clipboardData?.files);
    if (file) {
      event.preventDefault();
      choosePicture(file);
    }
  });
  const stage = byId("stage");
  document.addEventListener("dragover", (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    stage.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) stage.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    stage.classList.remove("over");
    const file = firstFile(event.dataTransfer.files);
    if (file) {
      event.preventDefault();
      choosePicture(file);
    }
  });
  for (const button of document.querySelectorAll("[data-example]")) {
    button.addEventListener("click", () => chooseExample(button.dataset.example));
  }
  if (cameraIsThere()) {
    show(byId("camera"));
    setUpCamera(choosePicture);
  }
}

function takeSettings() {
  byId("model").addEventListener("change", chooseModel);
  byId("top-k").addEventListener("input", askSoon);
  byId("controls").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  byId("add-box").addEventListener("click", () => boxes.add());
  byId("clear-boxes").addEventListener("click", () => {
    boxes.reset(boxes.size);
    byId("add-box").focus();
    askSoon();
  });
  byId("retry").addEventListener("click", () => (card ? ask() : loadModels()));
  byId("key-button").addEventListener("click", () => openKeyPanel(byId("key-panel").hidden));
  byId("key-panel").addEventListener("submit", (event) => {
    event.preventDefault();
    useKey(byId("key").value);
    openKeyPanel(false);
    byId("key-button").focus();
    loadModels();
  });
  byId("copy").addEventListener("click", async () => {
    const copied = await navigator.clipboard?.writeText(byId("command-text").textContent).then(() => true, () => false);
    if (!copied) getSelection().selectAllChildren(byId("command"));
    byId("copy").textContent = copied ? "Copied" : "Selected";
    byId("copied").textContent = copied ? "The command is copied." : "The command is selected; copy it with the keyboard.";
    setTimeout(() => (byId("copy").textContent = "Copy"), 2000);
  });
}

takePicturesFromEverywhere();
takeSettings();
new ResizeObserver(redraw).observe(byId("frame"));
index().then(({ links }) => show(byId("docs-link"), Boolean(links.docs)), showProblem);
loadModels();
