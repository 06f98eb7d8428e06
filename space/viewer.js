// The viewer of slices and volumes. This is the body of `js_on_load`: Gradio gives it `element`, `props`, `trigger` and
// `watch`. The server is asked for one file, when there is something new to show (see `write_view` in viewer.py).

const ORANGE = [230, 159, 0]; // the colours of modeling.visualization: the outline, or A's in a comparison,
const BLUE = [86, 180, 233]; // B's,
const GREEN = [0, 158, 115]; // and what A and B share
const STEPS = 100; // as in viewer.py
const IN_MASK = 128;
const [IN_A, IN_B] = [1, 2];
const LINE = 2; // pixels of the screen
const MAX_ZOOM = 16;
const WHEEL_NOTCH = 40; // pixels of wheel movement that turn one slice; a touchpad sends many small ones
const SWIPE = 14; // pixels of a finger's way that turn one slice
const WIDE = 736; // pixels: the controls stand beside the picture, see viewer.css
const STILL = 4; // pixels that a click may move

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

// Drawing: the slice's own pixels are painted on small canvases, which are then enlarged on the screen

const layer = () => document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const [greyLayer, fillLayer, lines] = [layer(), layer(), layer()];
const maskLayers = [layer(), layer()];

function paint(target, colourOf) {
  const { width, height } = view;
  target.canvas.width = width; // which clears it, too
  target.canvas.height = height;
  const image = target.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const start = index * width * height;
  for (let i = 0; i < pixels.length; i++) pixels[i] = colourOf(start + i);
  target.putImageData(image, 0, 0);
}

const packed = ([red, green, blue]) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0; // little-endian RGBA
const css = (colour) => `rgb(${colour})`;

function paintGrey() {
  const low = display.level - display.window / 2;
  const greys = Uint32Array.from({ length: 256 }, (_, value) => {
    const grey = clamp(Math.round((255 * (value - low)) / display.window), 0, 255);
    return packed([grey, grey, grey]);
  });
  paint(greyLayer, (i) => greys[view.grey[i]]);
}

// The outlines of the slice that is shown: [test of a byte, colour, whether the line runs outside of the edge]
function outlines() {
  if (view.kind === "flair") return [];
  if (view.kind === "lesion") return [[insideTest(), ORANGE, false]];
  return [
    [(byte) => byte & IN_B, BLUE, true],
    [(byte) => byte & IN_A, ORANGE, false],
  ];
}

function paintOverlay() {
  const all = outlines();
  if (!all.length) return;
  const colours = view.kind === "comparison" ? [0, ORANGE, BLUE, GREEN].map((colour) => colour && packed(colour)) : null;
  const [inside] = all[0];
  const orange = packed(ORANGE);
  paint(fillLayer, (i) => (colours ? colours[view.labels[i]] : inside(view.labels[i]) ? orange : 0));
  all.forEach(([test], number) => paint(maskLayers[number], (i) => (test(view.labels[i]) ? 0xff000000 : 0)));
}

// The edges between the pixels that a test takes and the others, in pixels of the slice
function edges(test) {
  const { width, height } = view;
  const path = new Path2D();
  const start = index * width * height;
  const taken = (row, column) =>
    row >= 0 && row < height && column >= 0 && column < width && Boolean(test(view.labels[start + row * width + column]));
  for (let row = 0; row <= height; row++) {
    for (let column = 0; column <= width; column++) {
      const here = taken(row, column);
      if (here !== taken(row - 1, column)) {
        path.moveTo(column, row);
        path.lineTo(column + 1, row);
      }
      if (here !== taken(row, column - 1)) {
        path.moveTo(column, row);
        path.lineTo(column, row + 1);
      }
    }
  }
  return path;
}

// From pixels of the slice to pixels of a canvas of `width` x `height`
function placement(width, height) {
  const fit = Math.min(width / view.width, height / (view.height * view.aspect)) * display.zoom;
  const [x, y] = [fit, fit * view.aspect];
  return { x, y, left: width / 2 - display.centre[0] * x, top: height / 2 - display.centre[1] * y };
}

const painted = { grey: "", overlay: "", paths: [] };

function draw() {
  frame = 0;
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [stage.clientWidth, stage.clientHeight].map((length) => Math.round(length * ratio));
  if (!width || !height) return; // in a tab that is not open
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, width, height);
  if (!view) return;

  const greyKey = [request, index, display.window, display.level].join();
  if (painted.grey !== greyKey) paintGrey();
  painted.grey = greyKey;
  const overlayKey = [request, index, view.threshold && inSteps(tried())].join();
  if (painted.overlay !== overlayKey) {
    paintOverlay();
    painted.paths = outlines().map(([test]) => edges(test));
  }
  painted.overlay = overlayKey;

  const at = placement(width, height);
  const place = (target) => target.setTransform(at.x, 0, 0, at.y, at.left, at.top);
  place(context);
  context.imageSmoothingQuality = "high";
  context.drawImage(greyLayer.canvas, 0, 0);
  if (display.overlay && view.kind !== "flair") {
    if (display.fill) {
      context.imageSmoothingEnabled = false;
      context.globalAlpha = display.opacity;
      context.drawImage(fillLayer.canvas, 0, 0);
      context.globalAlpha = 1;
      context.imageSmoothingEnabled = true;
    }
    context.setTransform(1, 0, 0, 1, 0, 0);
    if (display.outline) {
      outlines().forEach(([, colour, outside], number) => {
        // Twice as thick along the edge, of which one side is then taken away
        Object.assign(lines.canvas, { width, height });
        const path = new Path2D();
        path.addPath(painted.paths[number], new DOMMatrix([at.x, 0, 0, at.y, at.left, at.top]));
        Object.assign(lines, { strokeStyle: css(colour), lineWidth: 2 * LINE * ratio, lineCap: "square" });
        lines.stroke(path);
        lines.globalCompositeOperation = outside ? "destination-out" : "destination-in";
        lines.imageSmoothingEnabled = false;
        place(lines);
        lines.drawImage(maskLayers[number].canvas, 0, 0);
        context.drawImage(lines.canvas, 0, 0);
      });
    }
  }
  if (point) drawPoint(context, at, ratio);
  drawProfile(ratio);
}

function drawPoint(context, at, ratio) {
  context.setTransform(1, 0, 0, 1, 0, 0);
  const [x, y] = [at.left + (point.column + 0.5) * at.x, at.top + (point.row + 0.5) * at.y];
  const cross = new Path2D();
  for (const [right, down] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
    cross.moveTo(x + 4 * ratio * right, y + 4 * ratio * down);
    cross.lineTo(x + 12 * ratio * right, y + 12 * ratio * down);
  }
  for (const [colour, line] of [["#000", 4], ["#fff", 2]]) {
    Object.assign(context, { strokeStyle: colour, lineWidth: line * ratio });
    context.stroke(cross);
  }
}

// A bar for each slice, as high as its lesion is large, and a mark at the slice that is shown
function drawProfile(ratio) {
  profile.hidden = view.kind === "flair";
  if (view.slices < 2 || profile.hidden) return;
  const [width, height] = [profile.clientWidth, profile.clientHeight].map((length) => Math.round(length * ratio));
  Object.assign(profile, { width, height });
  const context = profile.getContext("2d");
  const colours = view.kind === "comparison" ? [GREEN, ORANGE, BLUE] : [ORANGE];
  const all = allAreas();
  const sums = all.map((parts) => parts.reduce((sum, part) => sum + part, 0));
  const most = Math.max(1, ...sums);
  const bar = width / view.slices;
  context.fillStyle = "#475569";
  context.fillRect(index * bar, 0, Math.max(bar, 2 * ratio), height);
  all.forEach((parts, slice) => {
    let bottom = height;
    parts.forEach((part, number) => {
      const length = (part / most) * (height - 4 * ratio);
      context.fillStyle = css(colours[number]);
      context.fillRect(slice * bar, bottom - length, Math.max(1, bar - (bar > 4 ? 1 : 0)), length);
      bottom -= length;
    });
  });
  context.fillStyle = "#fff";
  context.fillRect(index * bar, height - 3 * ratio, Math.max(bar, 2 * ratio), 3 * ratio);
  const largest = sums.indexOf(most);
  if (largest < 0) return;
  const quarter = Math.ceil(view.slices / 4);
  const left = Math.max(...sums.slice(0, quarter)) < Math.max(...sums.slice(-quarter)); // where it hides less
  const text = [`largest: slice ${largest + 1}, ${plural(most, "pixel")}`, left ? 6 * ratio : width - 6 * ratio, 14 * ratio];
  Object.assign(context, { font: `${11 * ratio}px system-ui, sans-serif`, textAlign: left ? "left" : "right" });
  Object.assign(context, { strokeStyle: "#0b1220", lineWidth: 3 * ratio, lineJoin: "round", fillStyle: "#e2e8f0" });
  context.strokeText(...text);
  context.fillText(...text);
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
  find(".slices").hidden = !shown || view.slices < 2;
  canvas.tabIndex = shown ? 0 : -1;
  preview.hidden = !shown || !isPreview();
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

// What can be done

function reset() {
  const [low, high] = view.window;
  const opacity = view.kind === "comparison" ? 0.4 : 0.25;
  const centre = [view.width / 2, view.height / 2];
  display = { zoom: 1, centre, window: high - low, level: (low + high) / 2, opacity, overlay: true, outline: true, fill: true };
  refresh();
}

function goTo(slice) {
  const next = clamp(slice, 0, view.slices - 1);
  if (next === index) return;
  [index, point] = [next, null];
  refresh();
}

function setWindow(width, level) {
  display.window = clamp(width, 2, 255);
  display.level = clamp(level, 0, 255);
  refresh();
}

function moveTo(centre) {
  // No further than the picture's edge at the stage's, once it is larger than the stage
  const at = placement(stage.clientWidth, stage.clientHeight);
  display.centre = [view.width, view.height].map((length, axis) => {
    const half = (axis ? stage.clientHeight / at.y : stage.clientWidth / at.x) / 2;
    return half >= length / 2 ? length / 2 : clamp(centre[axis], half, length - half);
  });
  refresh();
}

function pan(right, down) {
  const at = placement(stage.clientWidth, stage.clientHeight);
  moveTo([display.centre[0] - right / at.x, display.centre[1] - down / at.y]);
}

// Zoom, and leave what is at (x, y) of the stage where it is
function zoom(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
  const [column, row] = toSlice(x, y);
  display.zoom = clamp(display.zoom * factor, 1, MAX_ZOOM);
  const at = placement(stage.clientWidth, stage.clientHeight);
  moveTo([column + (stage.clientWidth / 2 - x) / at.x, row + (stage.clientHeight / 2 - y) / at.y]);
}

function toSlice(x, y) {
  const at = placement(stage.clientWidth, stage.clientHeight);
  return [(x - at.left) / at.x, (y - at.top) / at.y];
}

function toggle(what) {
  display[what] = !display[what];
  refresh();
}

const choose = () => trigger("select", { index: [point.column, point.row], value: null });

const actions = {
  zoomIn: () => zoom(1.5),
  zoomOut: () => zoom(1 / 1.5),
  reset,
  largest: () => goTo(allAreas().reduce((best, _, slice) => (lesion(slice) > lesion(best) ? slice : best), 0)),
  fullscreen: () => (document.fullscreenElement ? document.exitFullscreen() : root.requestFullscreen()),
  submit: () => trigger("submit", {}),
  save: () =>
    canvas.toBlob((blob) => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = view.slices > 1 ? `slice_${index + 1}.png` : "slice.png";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    }),
};

// Hands on it

root.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button || !view) return;
  if (button.dataset.toggle) toggle(button.dataset.toggle);
  else actions[button.dataset.do]();
});

root.addEventListener("input", (event) => {
  if (!view) return;
  const value = Number(event.target.value);
  if (event.target === position) return goTo(value - 1);
  if (event.target.dataset.set === "opacity") {
    Object.assign(display, { opacity: value / 100, fill: true, overlay: true });
    refresh();
  } else if (event.target.dataset.set === "window") setWindow(value, display.level);
  else if (event.target.dataset.set === "level") setWindow(display.window, value);
});

root.addEventListener("threshold", (event) => {
  threshold = event.detail;
  refresh();
});

let turned = 0; // of the wheel, since the last slice

canvas.addEventListener(
  "wheel",
  (event) => {
    const amount = event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY : event.deltaY * WHEEL_NOTCH;
    if (!view) return;
    if (event.ctrlKey || event.metaKey || event.altKey) {
      event.preventDefault();
      zoom(Math.exp(-clamp(amount, -60, 60) / 200), event.offsetX, event.offsetY);
    } else if (view.slices > 1) {
      event.preventDefault();
      turned += amount;
      if (Math.abs(turned) < WHEEL_NOTCH) return;
      goTo(index + Math.sign(turned));
      turned = 0;
    }
  },
  { passive: false },
);

const pointers = new Map(); // id -> [x, y]
let gesture = null; // { kind, way, rest }

canvas.addEventListener("pointerdown", (event) => {
  if (!view || event.button === 2) return;
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
  const touch = event.pointerType === "touch";
  let kind = event.shiftKey || event.button === 1 ? "pan" : "window";
  if (touch) kind = display.zoom > 1 ? "pan" : view.slices > 1 ? "slices" : "none";
  if (pointers.size > 1) kind = "pinch";
  gesture = { kind, way: kind === "pinch" ? STILL : 0, rest: 0 };
  if (event.button === 1) event.preventDefault(); // the browser's own scrolling
});

canvas.addEventListener("pointermove", (event) => {
  const last = pointers.get(event.pointerId);
  if (!last || !view) return;
  const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
  const next = [event.clientX, event.clientY];
  const [right, down] = [next[0] - last[0], next[1] - last[1]];
  pointers.set(event.pointerId, next);
  gesture.way += Math.abs(right) + Math.abs(down);
  if (gesture.way < STILL) return;
  if (gesture.kind === "pinch" && other) {
    const distance = (from) => Math.hypot(from[0] - other[0], from[1] - other[1]);
    const box = canvas.getBoundingClientRect();
    pan(right / 2, down / 2);
    zoom(distance(next) / Math.max(1, distance(last)), (next[0] + other[0]) / 2 - box.left, (next[1] + other[1]) / 2 - box.top);
  } else if (gesture.kind === "pan") pan(right, down);
  else if (gesture.kind === "window") {
    const step = 255 / stage.clientWidth;
    setWindow(display.window + right * step, display.level + down * step);
  } else if (gesture.kind === "slices") {
    gesture.rest += right;
    const slices = Math.trunc(gesture.rest / SWIPE);
    gesture.rest -= slices * SWIPE;
    goTo(index + slices);
  }
});

canvas.addEventListener("pointerup", (event) => {
  pointers.delete(event.pointerId);
  if (!view || !gesture || gesture.way >= STILL || event.button !== 0) return;
  const [column, row] = toSlice(event.offsetX, event.offsetY).map(Math.floor);
  if (row < 0 || row >= view.height || column < 0 || column >= view.width) return;
  point = { row, column };
  refresh();
  choose();
});

canvas.addEventListener("pointercancel", (event) => pointers.delete(event.pointerId));

function movePoint(right, down) {
  const step = Math.max(1, Math.round(Math.max(view.width, view.height) / 64));
  const from = point ?? { row: view.height >> 1, column: view.width >> 1 };
  point = {
    row: clamp(from.row + down * step, 0, view.height - 1),
    column: clamp(from.column + right * step, 0, view.width - 1),
  };
  refresh();
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

canvas.addEventListener("keydown", (event) => {
  if (!view || event.ctrlKey || event.metaKey || event.altKey) return;
  const arrow = ARROWS[event.key];
  const keys = {
    Home: () => goTo(0),
    End: () => goTo(view.slices - 1),
    PageUp: () => goTo(index - 5),
    PageDown: () => goTo(index + 5),
    "+": actions.zoomIn,
    "=": actions.zoomIn,
    "-": actions.zoomOut,
    r: reset,
    m: actions.largest,
    o: () => toggle("overlay"),
    l: () => toggle("outline"),
    f: () => toggle("fill"),
    Enter: () => point && choose(),
  };
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (arrow && event.shiftKey) pan(-40 * arrow[0], -40 * arrow[1]);
  else if (arrow && view.slices > 1) goTo(index + arrow[0] + arrow[1]);
  else if (arrow) movePoint(...arrow);
  else if ("olfm".includes(key) && view.kind === "flair") return;
  else if (keys[key]) keys[key]();
  else return;
  event.preventDefault();
});

profile.addEventListener("pointerdown", (event) => {
  profile.setPointerCapture(event.pointerId);
  goTo(Math.floor((event.offsetX / profile.clientWidth) * view.slices));
});
profile.addEventListener("pointermove", (event) => {
  if (event.buttons) goTo(Math.floor((event.offsetX / profile.clientWidth) * view.slices));
});

new ResizeObserver(() => view && (frame ||= requestAnimationFrame(draw))).observe(stage);
watch("value", () => show(props.value));
show(props.value);
