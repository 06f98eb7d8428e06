// The viewer of slices and volumes. This is the body of `js_on_load`: Gradio gives it `element`, `props`, `trigger` and
// `watch`. The server is asked for one file, when there is something new to show (see `write_view` in viewer.py).

const STEPS = 100; // as in viewer.py
const IN_MASK = 128;
const [IN_A, IN_B] = [1, 2];
const WIDE = 736; // pixels: the controls stand beside the picture, see viewer.css

const find = (selector) => element.querySelector(selector);
const [root, stage, canvas, profile] = [".viewer", ".stage", ".picture", ".profile"].map(find);
const [position, status, preview, empty] = [".position", ".status", ".preview", ".empty"].map(find);
const nothingYet = empty.textContent;

let view = null; // the value from the server, with the voxels; null while there is nothing to show
let request = 0; // counts what was asked for, so that a late answer to an earlier question is dropped
let index = 0; // the slice that is shown, from 0
let threshold = null; // that of the slider; null until it was moved
let point = null; // { row, column } that was chosen
let display = {}; // zoom, centre, window, level, opacity, overlay, outline, fill
let frame = 0; // the animation frame that was asked for

// Numbers

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const written = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const plural = (count, what) => `${written(count)} ${what}${count === 1 ? "" : "s"}`;
const inSteps = (value) => Math.round(value * STEPS);
const tried = () => threshold ?? view.threshold;
const isPreview = () => view.kind === "lesion" && inSteps(tried()) !== inSteps(view.threshold);

// How often each byte of the outline occurs in each slice: (slices, 256)
function histograms(labels, slices, size) {
  const counts = new Uint32Array(slices * 256);
  for (let slice = 0; slice < slices; slice++) {
    const start = slice * 256;
    for (let i = slice * size, end = i + size; i < end; i++) counts[start + labels[i]]++;
  }
  return counts;
}

// Whether a byte of the outline belongs to the lesion, at the threshold that is tried
function insideTest() {
  const limit = inSteps(tried());
  return isPreview() ? (byte) => (byte & (IN_MASK - 1)) >= limit : (byte) => byte >= IN_MASK;
}

// Pixels of a slice: [lesion], or in a comparison [in both, in A only, in B only]
function areas(slice) {
  const counts = view.counts.subarray(slice * 256, (slice + 1) * 256);
  if (view.kind === "comparison") return [counts[IN_A + IN_B], counts[IN_A], counts[IN_B]];
  const inside = insideTest();
  return [counts.reduce((sum, count, byte) => sum + (inside(byte) ? count : 0), 0)];
}

const lesion = (slice) => areas(slice).reduce((sum, area) => sum + area, 0);
const allAreas = () => Array.from({ length: view.slices }, (_, slice) => areas(slice));

// Loading

async function show(value) {
  const asked = ++request;
  view = null;
  empty.textContent = value ? "Loading the picture…" : nothingYet;
  refresh();
  if (!value) return;
  try {
    const response = await fetch(value.file.url);
    if (!response.ok) throw new Error(`${response.status}`);
    const stream = response.body.pipeThrough(new DecompressionStream("gzip"));
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    if (asked !== request) return;
    const [slices, height, width] = value.shape;
    const voxels = slices * height * width;
    const labels = bytes.subarray(voxels);
    const [, row, column] = value.spacing ?? [1, 1, 1];
    view = { ...value, slices, height, width, labels, grey: bytes.subarray(0, voxels), aspect: row / column };
    if (value.kind !== "flair") view.counts = histograms(labels, slices, height * width);
    [index, point] = [value.start, null];
    find(".keys").open ||= root.clientWidth >= WIDE;
    reset();
  } catch (error) {
    if (asked !== request) return;
    console.error("The viewer could not load its picture:", error);
    empty.textContent = "The picture could not be loaded. Please run the model again.";
  }
}

// Words

function place() {
  return view.slices > 1 ? `FLAIR slice ${index + 1} of ${view.slices}` : "FLAIR slice";
}

function found() {
  const parts = areas(index);
  if (view.kind === "comparison") {
    return `${plural(parts[0], "pixel")} in both outlines, ${written(parts[1])} in A only, ${written(parts[2])} in B only`;
  }
  return `lesion ${plural(parts[0], "pixel")}`;
}

function label() {
  return view.kind === "flair" ? `${place()}, not outlined yet` : `${place()}, ${found()}`;
}

function measured() {
  const sentence = [label()];
  if (view.kind === "lesion") {
    const [pixels] = areas(index);
    const [slice, row, column] = view.spacing ?? [];
    if (row) sentence[0] += ` (${written(pixels * row * column)} mm²)`;
    if (view.slices > 1) {
      const voxels = allAreas().reduce((sum, [area]) => sum + area, 0);
      sentence.push(row ? `${written((voxels * slice * row * column) / 1000, 1)} ml in all` : `${plural(voxels, "voxel")} in all`);
    } else if (!row) {
      sentence[0] += `, ${written((100 * pixels) / (view.height * view.width), 2)} % of the slice`;
    }
    sentence.push(`threshold ${tried().toFixed(2)}`);
    if (view.postprocessed && !isPreview()) sentence.push("after 3-D post-processing");
  }
  if (point) {
    const byte = view.labels[(index * view.height + point.row) * view.width + point.column];
    const what = {
      flair: () => "",
      lesion: () => `: probability ${((byte & (IN_MASK - 1)) / STEPS).toFixed(2)}`,
      comparison: () => `: ${["in neither", "in A only", "in B only", "in both"][byte]}`,
    }[view.kind]();
    sentence.push(`row ${point.row}, column ${point.column}${what}`);
  }
  return sentence.join(" · ");
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text; // a screen reader repeats what is set again
}

// Show everything anew: words at once, pictures in the next frame
function refresh() {
  const shown = Boolean(view);
  find(".controls").hidden = !shown;
  empty.hidden = shown;
  find(".setting").hidden = !shown;
  find(".slices").hidden = !shown || view.slices < 2;
  canvas.tabIndex = shown ? 0 : -1;
  preview.hidden = !shown || !isPreview();
  const focused = document.activeElement;
  if (root.contains(focused) && focused.closest("[hidden]")) canvas.focus({ preventScroll: true }); // else it is lost
  setText(status, shown ? measured() : "");
  canvas.setAttribute("aria-label", shown ? label() : "No picture yet");
  if (shown) {
    for (const part of root.querySelectorAll(".overlays")) part.hidden = view.kind === "flair";
    find("[data-do=largest]").hidden = view.kind === "flair" || view.slices < 2;
    find("[data-do=fullscreen]").hidden = !document.fullscreenEnabled;
    position.max = view.slices;
    position.value = index + 1;
    position.setAttribute("aria-valuetext", label());
    for (const button of root.querySelectorAll("[data-toggle]")) {
      button.setAttribute("aria-pressed", display[button.dataset.toggle]);
      button.disabled = button.dataset.toggle !== "overlay" && !display.overlay;
    }
    find("[data-set=opacity]").value = 100 * display.opacity;
    find("[data-set=window]").value = display.window;
    find("[data-set=level]").value = display.level;
    setText(find(".setting"), `W ${Math.round(display.window)}  L ${Math.round(display.level)}  ${display.zoom.toFixed(1)}×`);
    canvas.style.touchAction = display.zoom > 1 ? "none" : "pan-y";
    if (!preview.hidden) {
      const raw = view.postprocessed ? ": all voxels that reach it, without the 3-D post-processing of a run" : "";
      setText(
        preview.querySelector("p"),
        `Trying threshold ${tried().toFixed(2)}${raw}. Measurements and files are still those of ${view.threshold.toFixed(2)}.`,
      );
      setText(preview.querySelector("button"), `Run at ${tried().toFixed(2)}`);
    }
  }
  frame ||= requestAnimationFrame(draw);
}
