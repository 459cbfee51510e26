// The page of flatten-det serve: sends an image, draws what comes back, and asks for attention maps.

const $ = (id) => document.getElementById(id);
const canvas = $("canvas");
const LEAST_SCORE = Number($("threshold").min);
const MOST_MASK_PIXELS = 1 << 21;
const MOST_ENLARGED = 8;
const STEPS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
const CLASSES_SHOWN_AT_ONCE = 200;

let model = null;
// Of the image at hand: the file, its pixels, the server's answer, and the parts that can be drawn.
let shown = null;
const hiddenLabels = new Set();
let query = null;
let overlay = null;
let wanted = null;
let isAsking = false;
let newest = 0;

async function start() {
  model = await (await ask("model", {method: "GET"})).json();
  document.title = `${model.name} – flatten_det`;
  $("model").textContent = model.name;
  const tasks = {
    detection: "object detection",
    instance: "instance segmentation",
    semantic: "semantic segmentation",
    panoptic: "panoptic segmentation",
  };
  $("task").textContent = `${tasks[model.task]}, ${counted(model.classes.length, "class", "classes")}`;
  const {upload_bytes: bytes, pixels} = model.limits;
  $("limits").textContent =
    `PNG, JPEG, WebP or BMP, up to ${short(bytes / 2 ** 20)} MB and ${short(pixels / 1e6)} megapixels`;
  $("detections").hidden = !hasScores();
  $("areas").hidden = model.task === "detection";
  $("attention").hidden = !model.layers.length;
  for (const layer of model.layers) $("layer").add(new Option(layer.name));
  if (model.layers.length) {
    // The last maps are coarse.
    $("layer").selectedIndex = Math.floor(model.layers.length / 2);
    listHeads();
  }
  $("drop").classList.add("is-empty");
}

const hasScores = () => model.task === "detection" || model.task === "instance";
const counted = (count, one, many) => `${count} ${count === 1 ? one : many}`;
const short = (number) => Number(number.toPrecision(2));
const percent = (share) => `${short(100 * share)} %`;
const layer = () => model.layers[$("layer").selectedIndex];

function listHeads() {
  const before = $("head").selectedIndex;
  $("head").replaceChildren(...Array.from({length: layer().heads}, (_, head) => new Option(head)));
  $("head").selectedIndex = Math.min(Math.max(before, 0), layer().heads - 1);
}

/** The server's answer; if it is busy, after the time that it names. An Error says why there is none. */
async function ask(address, options) {
  for (;;) {
    let response;
    try {
      response = await fetch(address, options);
    } catch {
      throw new Error("The server does not answer.");
    }
    if (response.status === 503) {
      $("status").textContent = "The server is busy: waiting …";
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      await new Promise((resume) => setTimeout(resume, 1000 * seconds));
    } else if (response.ok) {
      return response;
    } else {
      const reason = await response.json().catch(() => ({detail: response.statusText}));
      throw Object.assign(new Error(reason.detail), {status: response.status});
    }
  }
}

async function predict(file) {
  const number = ++newest;
  $("problem").textContent = "";
  if (file.size > model.limits.upload_bytes) {
    $("problem").textContent = "The file is larger than the server takes.";
    return;
  }
  $("status").textContent = "Predicting …";
  try {
    const begins = performance.now();
    const response = await ask(`predict?score=${LEAST_SCORE}`, {method: "POST", body: file});
    const answer = await response.json();
    const milliseconds = performance.now() - begins;
    const bitmap = await asAnswered(file, answer);
    if (number !== newest) return;
    shown = {file, answer, bitmap, parts: partsOf(answer)};
    const {model: ofModel, waiting} = answer.milliseconds;
    $("latency").textContent =
      `${Math.round(ofModel)} ms in the model, ${Math.round(waiting)} ms waiting, ` +
      `${Math.round(milliseconds)} ms from sending to answer. ${answer.width} × ${answer.height} pixels.`;
  } catch (error) {
    if (number === newest) {
      $("status").textContent = "";
      $("problem").textContent = error.message;
    }
    return;
  }
  query = overlay = wanted = null;
  $("attend").checked = false;
  $("weights").textContent = "";
  hiddenLabels.clear();
  $("drop").classList.remove("is-empty");
  $("invitation").textContent = "Drop or paste another image, or";
  $("controls").hidden = canvas.hidden = false;
  listClasses();
  draw();
}

/** The file's pixels, turned as the server has turned them. */
async function asAnswered(file, {width, height}) {
  const bitmap = await createImageBitmap(file);
  if (bitmap.width === width && bitmap.height === height) return bitmap;
  return createImageBitmap(file, {imageOrientation: "none"});
}

/** What can be drawn, the best first: label, score or share, box and spans of the mask. */
function partsOf(answer) {
  const {width, height} = answer;
  const factor = Math.min(1, Math.sqrt(MOST_MASK_PIXELS / (width * height)));
  const size = [Math.ceil(width * factor), Math.ceil(height * factor)];
  const spans = (mask) => mask && spansOf(mask, ...size);
  let parts;
  if (hasScores()) {
    parts = answer.labels.map((label, i) => ({
      label,
      score: answer.scores[i],
      box: answer.bboxes[i],
      spans: spans(answer.masks?.[i]),
    }));
  } else if (answer.segments) {
    parts = answer.segments.map(({label, area, mask}) => ({
      label,
      share: area / (width * height),
      spans: spans(mask),
    }));
  } else {
    parts = answer.classes
      .filter(({mask}) => mask)
      .map(({label, share, mask}) => ({label, share, spans: spans(mask)}));
  }
  return Object.assign(parts, {size});
}

/** Column, first row and the row after the last one of a mask's runs, in a map of another size. */
function spansOf({size: [height, width], counts}, newWidth, newHeight) {
  const columns = new Int32Array(width).fill(-1);
  for (let x = 0; x < newWidth; x++) columns[Math.floor(((x + 0.5) * width) / newWidth)] = x;
  const row = (y) => Math.ceil((y * newHeight) / height - 0.5);
  const spans = [];
  let at = 0;
  let isObject = false;
  for (const run of runsOf(counts)) {
    const end = at + run;
    if (isObject) {
      for (let column = Math.floor(at / height); column * height < end; column++) {
        const top = row(Math.max(at - column * height, 0));
        const bottom = row(Math.min(end - column * height, height));
        if (columns[column] >= 0 && bottom > top) spans.push(columns[column], top, bottom);
      }
    }
    at = end;
    isObject = !isObject;
  }
  return spans;
}

/** COCO's run lengths: 5 bits a character; from the fourth on, differences from the last but one. */
function runsOf(counts) {
  const runs = [];
  let number = 0;
  let shift = 0;
  for (const character of counts) {
    const code = character.charCodeAt(0) - 48;
    number |= (code & 31) << shift;
    shift += 5;
    if (code & 32) continue;
    if (code & 16) number |= -1 << shift;
    runs.push(number + (runs.length > 2 ? runs[runs.length - 2] : 0));
    number = shift = 0;
  }
  return runs;
}

const isAbove = (part) => !hasScores() || part.score >= Number($("threshold").value);
const isVisible = (part) => isAbove(part) && !hiddenLabels.has(part.label);

function listClasses() {
  const labels = [...new Set(shown.parts.map(({label}) => label))].slice(0, CLASSES_SHOWN_AT_ONCE);
  const rows = labels.map((label) => {
    const row = document.createElement("label");
    row.className = "switch";
    const input = Object.assign(document.createElement("input"), {type: "checkbox", checked: true});
    input.addEventListener("change", () => {
      input.checked ? hiddenLabels.delete(label) : hiddenLabels.add(label);
      draw();
    });
    const [colour, name, count] = ["colour", "name", "count"].map((className) =>
      Object.assign(document.createElement("span"), {className}),
    );
    colour.style.background = `rgb(${model.classes[label].colour})`;
    name.textContent = model.classes[label].name;
    count.dataset.label = label;
    row.append(input, colour, name, count);
    return row;
  });
  $("classes").replaceChildren(...rows);
  $("classes-legend").textContent = rows.length ? "Classes" : "Classes: none found";
  $("all").hidden = $("none").hidden = rows.length < 2;
}

function switchAll(isOn) {
  hiddenLabels.clear();
  for (const count of $("classes").querySelectorAll(".count")) {
    count.parentElement.firstChild.checked = isOn;
    if (!isOn) hiddenLabels.add(Number(count.dataset.label));
  }
  draw();
}

function describe() {
  const {parts} = shown;
  $("least").textContent = Number($("threshold").value).toFixed(2);
  $("opaque").textContent = `${Math.round(100 * $("opacity").value)} %`;
  for (const count of $("classes").querySelectorAll(".count")) {
    const own = parts.filter(({label}) => label === Number(count.dataset.label));
    const share = own.reduce((sum, part) => sum + part.share, 0);
    count.textContent = hasScores()
      ? `${own.filter(isAbove).length} of ${own.length}`
      : `${(100 * share).toFixed(1)} %`;
  }
  const visible = parts.filter(isVisible).length;
  const what = hasScores() ? "detections" : model.task === "panoptic" ? "segments" : "classes";
  if (!$("attend").checked) $("status").textContent = `${visible} of ${parts.length} ${what} shown.`;
  canvas.setAttribute("aria-label", `The image with ${visible} ${what}`);
}

function draw() {
  if (!shown) return;
  describe();
  const {bitmap, answer} = shown;
  const room = [$("stage").clientWidth, Math.max(0.75 * innerHeight, 240)];
  const factor = Math.min(room[0] / answer.width, room[1] / answer.height, MOST_ENLARGED);
  const scale = factor * devicePixelRatio;
  canvas.style.width = `${Math.round(answer.width * factor)}px`;
  canvas.width = Math.max(Math.round(answer.width * scale), 1);
  canvas.height = Math.max(Math.round(answer.height * scale), 1);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  // Its own colours would mix with those of the weights.
  context.filter = $("attend").checked ? "grayscale(1)" : "none";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  context.filter = "none";
  if ($("attend").checked) {
    drawAttention(context, scale);
  } else {
    drawMasks(context);
    drawBoxes(context, scale);
  }
  canvas.classList.toggle("is-asked", model.layers.length > 0);
}

function drawMasks(context) {
  const {parts} = shown;
  const masks = parts.filter((part) => part.spans && isVisible(part)).reverse();
  if (!masks.length) return;
  const [width, height] = parts.size;
  const layer = Object.assign(document.createElement("canvas"), {width, height});
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const opacity = Math.round(255 * $("opacity").value);
  for (const {label, spans} of masks) {
    const [red, green, blue] = model.classes[label].colour;
    const value = ((opacity << 24) | (blue << 16) | (green << 8) | red) >>> 0;
    for (let i = 0; i < spans.length; i += 3) {
      for (let y = spans[i + 1]; y < spans[i + 2]; y++) pixels[y * width + spans[i]] = value;
    }
  }
  layer.getContext("2d").putImageData(image, 0, 0);
  context.drawImage(layer, 0, 0, canvas.width, canvas.height);
}

function drawBoxes(context, scale) {
  const visible = shown.parts.filter((part) => part.box && isVisible(part));
  const unit = devicePixelRatio;
  context.lineWidth = 2 * unit;
  context.font = `600 ${13 * unit}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  for (const {label, box} of visible.toReversed()) {
    const [left, top, right, bottom] = box.map((side) => side * scale);
    context.strokeStyle = `rgb(${model.classes[label].colour})`;
    context.strokeRect(left, top, right - left, bottom - top);
  }
  const height = 18 * unit;
  const taken = [];
  for (const {label, score, box} of visible) {
    const {name, colour} = model.classes[label];
    const text = `${name} ${score.toFixed(2)}`;
    const width = context.measureText(text).width + 8 * unit;
    const [left, top, , bottom] = box.map((side) => side * scale);
    const x = Math.max(Math.min(left - unit, canvas.width - width), 0);
    const y = [top - height, top, bottom, bottom - height]
      .map((place) => Math.max(Math.min(place, canvas.height - height), 0))
      .find((place) =>
        taken.every(
          (other) =>
            x >= other.x + other.width ||
            x + width <= other.x ||
            Math.abs(place - other.y) >= height,
        ),
      );
    if (y === undefined) continue;  // It would hide a better one's.
    taken.push({x, y, width});
    context.fillStyle = `rgb(${colour})`;
    context.fillRect(x, y, width, height);
    const [red, green, blue] = colour;
    context.fillStyle = 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#000" : "#fff";
    context.fillText(text, x + 4 * unit, y + height / 2);
  }
}

function drawAttention(context, scale) {
  if (overlay) {
    context.imageSmoothingEnabled = false;
    context.drawImage(overlay, 0, 0, canvas.width, canvas.height);
  }
  if (!query) return;
  const [x, y] = [(query.x + 0.5) * scale, (query.y + 0.5) * scale];
  for (const [colour, width] of [["#000", 5], ["#4df3ff", 2.5]]) {
    context.strokeStyle = colour;
    context.lineWidth = width * devicePixelRatio;
    context.beginPath();
    context.arc(x, y, 8 * devicePixelRatio, 0, 2 * Math.PI);
    context.stroke();
  }
}

function askFor(x, y) {
  const {width, height} = shown.answer;
  query = {
    x: Math.min(Math.max(Math.floor(x), 0), width - 1),
    y: Math.min(Math.max(Math.floor(y), 0), height - 1),
  };
  $("attend").checked = true;
  wanted = {...query, layer: $("layer").value, head: $("head").selectedIndex};
  draw();
  if (!isAsking) attend();
}

/** Asks for what is wanted, until it is what was wanted last. */
async function attend() {
  isAsking = true;
  while (wanted) {
    const {answer} = shown;
    const asked = wanted;
    wanted = null;
    const {x, y, layer: name, head} = asked;
    const address = `attention?${new URLSearchParams({...asked, format: "png"})}`;
    try {
      const response = await askAbout(shown, address);
      const [least, most] = response.headers.get("X-Weights").split(" ").map(Number);
      const bitmap = await createImageBitmap(await response.blob());
      if (shown.answer !== answer || !$("attend").checked) continue;
      overlay = bitmap;
      $("problem").textContent = "";
      $("status").textContent = `Pixel ${x}, ${y} in layer ${name}, head ${head}.`;
      const even = 1 / (bitmap.width * bitmap.height);
      $("weights").textContent =
        `Weights: ${percent(least)} (dark) to ${percent(most)} (bright) of all; ` +
        `even ones would be ${percent(even)}. ${bitmap.width} × ${bitmap.height} keys.`;
    } catch (error) {
      $("problem").textContent = error.message;
    }
    draw();
  }
  isAsking = false;
}

/** An answer about an image, which is sent again only if the server does not remember it. */
async function askAbout(image, address) {
  if (image.wasSent) {
    try {
      return await ask(`${address}&image=${image.answer.image}`, {method: "POST"});
    } catch (error) {
      if (error.status !== 404) throw error;
    }
  }
  const response = await ask(address, {method: "POST", body: image.file});
  image.wasSent = true;
  return response;
}


function leaveAttention() {
  $("attend").checked = false;
  $("weights").textContent = "";
  wanted = null;
  draw();
}

$("file").addEventListener("change", ({target}) => {
  if (target.files[0]) predict(target.files[0]);
  target.value = "";
});
document.addEventListener("paste", ({clipboardData}) => {
  if (clipboardData.files[0]) predict(clipboardData.files[0]);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("is-over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) predict(event.dataTransfer.files[0]);
  });
}
$("threshold").addEventListener("input", draw);
$("opacity").addEventListener("input", draw);
$("all").addEventListener("click", () => switchAll(true));
$("none").addEventListener("click", () => switchAll(false));
const askAgain = () => {
  const {width, height} = shown.answer;
  askFor(query?.x ?? width / 2, query?.y ?? height / 2);
};
$("attend").addEventListener("change", ({target}) => (target.checked ? askAgain() : leaveAttention()));
$("layer").addEventListener("change", () => {
  listHeads();
  askAgain();
});
$("head").addEventListener("change", askAgain);
canvas.addEventListener("click", ({offsetX, offsetY}) => {
  const factor = shown.answer.width / canvas.clientWidth;
  if (model.layers.length) askFor(offsetX * factor, offsetY * factor);
});
canvas.addEventListener("keydown", (event) => {
  if (event.key === "Escape") leaveAttention();
  const step = STEPS[event.key];
  if (!step || !model.layers.length) return;
  event.preventDefault();
  const {width, height} = shown.answer;
  const pixels = Math.max(Math.round(Math.max(width, height) / 100), 1) * (event.shiftKey ? 10 : 1);
  // The first key shows where it begins.
  const [x, y] = query ? [query.x + step[0] * pixels, query.y + step[1] * pixels] : [width / 2, height / 2];
  askFor(x, y);
});
new ResizeObserver(draw).observe($("stage"));

start().catch((error) => {
  $("problem").textContent = error.message;
});
