// The lesion in the head in 3-D, by casting rays through the voxels. This is the body of `js_on_load`: Gradio gives it
// `element`, `props` and `watch`. The server is asked for the viewer's file (see `write_view` in viewer.py), and the
// graphics card for memory, when somebody opens the view.

const ORANGE = [230, 159, 0]; // as in viewer.js
const IN_MASK = 128; // as in viewer.py
const MAX_SIDE = 256; // voxels of a texture, which every WebGL 2 takes; more are averaged
const TURN = 10; // degrees by a key
const TURN_PER_PIXEL = 0.5; // degrees
const MAX_ZOOM = 6;
const GUESSED_HEIGHT = 0.7; // of the slices' width, where the distance between slices is unknown
const LEVELS = [1, 1.5, 2, 3, 4, 6, 8]; // pixels of the screen that share one of the picture, each way
const MOVING = 60; // ms that a picture may take while it moves,
const STILL = 500; // and once it stands still; without a graphics card they are drawn coarser
const VIEWS = { front: { yaw: 0, pitch: 0 }, side: { yaw: 90, pitch: 0 }, top: { yaw: 0, pitch: 90 } };
const FIRST = { yaw: 25, pitch: 15, zoom: 1, head: 50, cut: 0 };

const VERTEX = `#version 300 es
out vec2 at;
void main() { // one triangle that covers the picture
  at = vec2(gl_VertexID == 1 ? 3.0 : -1.0, gl_VertexID == 2 ? 3.0 : -1.0);
  gl_Position = vec4(at, 0.0, 1.0);
}`;

// Parallel rays; lengths are such that the volume's diagonal is 2. The first axis is that of columns, to the picture's
// right as seen from the front, the second that of rows, away from the front, the third that of slices, upwards.
const FRAGMENT = `#version 300 es
precision highp float;
precision highp sampler3D;
uniform sampler3D flair, lesion;
uniform vec3 size, voxel, right, up, forward, orange;
uniform vec2 extent;
uniform float white, head, cut, interval;
in vec2 at;
out vec4 color;

vec3 gradient(sampler3D volume, vec3 point, float reach) {
  vec3 d = voxel * reach;
  return vec3(
    texture(volume, point + vec3(d.x, 0, 0)).r - texture(volume, point - vec3(d.x, 0, 0)).r,
    texture(volume, point + vec3(0, d.y, 0)).r - texture(volume, point - vec3(0, d.y, 0)).r,
    texture(volume, point + vec3(0, 0, d.z)).r - texture(volume, point - vec3(0, 0, d.z)).r) / (size * d);
}

float facing(vec3 slope) { // 1 for a surface that faces us, 0 for one that is seen along
  return length(slope) > 0.0 ? abs(dot(normalize(slope), forward)) : 1.0;
}

void main() {
  vec3 start = right * at.x * extent.x + up * at.y * extent.y - forward;
  vec3 lows = (-0.5 * size - start) / forward, highs = (0.5 * size - start) / forward;
  vec3 nears = min(lows, highs), fars = max(lows, highs);
  float near = max(max(nears.x, nears.y), max(nears.z, 0.0)), far = min(fars.x, min(fars.y, fars.z));
  vec3 shade = vec3(0.0);
  float covered = 0.0, face = 2.0 * cut;
  float jitter = fract(sin(dot(gl_FragCoord.xy, vec2(12.9898, 78.233))) * 43758.5453);
  bool cutting = cut > 0.0;
  for (float way = near + interval * jitter; way < far; way += interval) {
    vec3 point = (start + forward * way) / size + 0.5;
    float inside = texture(lesion, point).r;
    if (inside > 0.5) {
      float before = way - interval, after = way;
      for (int i = 0; i < 5; i++) {
        float middle = 0.5 * (before + after);
        bool hit = texture(lesion, (start + forward * middle) / size + 0.5).r > 0.5;
        if (hit) after = middle; else before = middle;
      }
      point = (start + forward * after) / size + 0.5;
      float light = 0.4 + 0.6 * facing(gradient(lesion, point, 2.0));
      shade += (1.0 - covered) * orange * light;
      covered = 1.0;
      break;
    }
    if (way < face || covered > 0.5) continue; // what lies before the lesion never hides it
    float grey = min(texture(flair, point).r / white, 1.0);
    float tissue = smoothstep(0.12, 0.35, grey);
    if (tissue < 0.01) continue;
    float alpha, light;
    if (cutting && way - face < interval) { // the face of the cut is a picture of its own
      alpha = 0.7 * tissue * min(1.0, 2.0 * head);
      light = grey;
    } else {
      vec3 slope = gradient(flair, point, 1.5);
      float front = facing(slope);
      float edge = clamp(length(slope) * 0.05, 0.0, 1.0);
      alpha = 1.0 - exp(-interval * head * tissue * (1.5 + 14.0 * edge * (1.3 - front)));
      light = (0.35 + 0.65 * front) * (0.35 + 0.65 * grey);
    }
    shade += (1.0 - covered) * alpha * light * vec3(1.05, 1.12, 1.2);
    covered += (1.0 - covered) * alpha;
  }
  color = vec4(shade, 1.0);
}`;

const find = (selector) => element.querySelector(selector);
const [root, opener, content, stage] = [".scene", ".opener", ".content", ".stage"].map(find);
const [message, status] = [".message", ".status"].map(find);

let released = 0; // counts what was given up, so that a late answer to it is dropped
let scene = null; // what is drawn; null before it was opened
let gl = null;
let program = null;
let camera = { ...FIRST };
let frame = 0;
let cost = null; // ms that a step of a ray takes, as measured
let budget = MOVING;
let settle = 0; // the timer after which the picture is drawn finely

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const written = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

// Opening and closing

const hasScene = (value) => Boolean(value) && value.kind === "lesion" && value.shape[0] > 1;

function renew() {
  close();
  opener.hidden = !hasScene(props.value);
}

function close() {
  content.hidden = true;
  opener.setAttribute("aria-expanded", "false");
  opener.textContent = "Show in 3-D";
  release();
}

function release() {
  released++;
  scene = null;
  if (gl) gl.getExtension("WEBGL_lose_context")?.loseContext(); // gives the memory back
  gl = null;
  pointers.clear(); // what presses on a canvas that is gone is not told of when it is lifted
  const last = find(".picture");
  last.replaceWith(last.cloneNode(false)); // a lost context stays with its canvas
}

// The browser takes the graphics card's memory away, as a device that sleeps or runs short of it does.
function lose() {
  if (root.contains(document.activeElement)) opener.focus({ preventScroll: true }); // else it is lost
  release();
  showParts(false);
  say("The browser has taken the 3-D view's memory away. Close the view, and show it again.");
}

async function open() {
  const asked = released;
  content.hidden = false;
  opener.setAttribute("aria-expanded", "true");
  opener.textContent = "Close the 3-D view";
  showParts(false);
  say("Loading…");
  gl = find(".picture").getContext("webgl2", { antialias: false, preserveDrawingBuffer: true });
  if (!gl) return say("The 3-D view needs WebGL 2, which this browser does not have or has switched off.");
  try {
    const response = await fetch(props.value.file.url);
    if (!response.ok) throw new Error(`${response.status}`);
    const stream = response.body.pipeThrough(new DecompressionStream("gzip"));
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    if (asked !== released) return;
    scene = build(props.value, bytes);
  } catch (error) {
    if (asked !== released) return;
    console.error("The 3-D view could not be shown:", error);
    return say("The 3-D view could not be shown. Please run the model again.");
  }
  say("");
  showParts(true);
  camera = { ...FIRST };
  refresh();
}

function say(text) {
  message.textContent = text;
  message.hidden = !text;
}

function showParts(visible) {
  for (const part of root.querySelectorAll(".tools, .settings, .hint")) part.hidden = !visible;
  status.textContent = "";
  const picture = find(".picture");
  picture.tabIndex = visible ? 0 : -1;
  picture.setAttribute("aria-label", "No picture yet");
}

// From the file to textures

// Blocks of voxels as one each, so that no side is longer than MAX_SIDE: { data, shape }. A block of a mask is inside
// where any of its voxels is, so that no part of a lesion is lost.
function shrink(voxels, shape, isMask = false) {
  const steps = shape.map((length) => Math.ceil(length / MAX_SIDE));
  if (steps.every((step) => step === 1)) return { data: voxels, shape };
  const small = shape.map((length, axis) => Math.ceil(length / steps[axis]));
  const data = new Uint8Array(small[0] * small[1] * small[2]);
  let target = 0;
  for (let slice = 0; slice < small[0]; slice++) {
    for (let row = 0; row < small[1]; row++) {
      for (let column = 0; column < small[2]; column++) {
        let [sum, count, largest] = [0, 0, 0];
        const [first, last] = [[slice, row, column].map((place, axis) => place * steps[axis]), []];
        first.forEach((place, axis) => last.push(Math.min(place + steps[axis], shape[axis])));
        for (let i = first[0]; i < last[0]; i++) {
          for (let j = first[1]; j < last[1]; j++) {
            const from = (i * shape[1] + j) * shape[2];
            for (let k = first[2]; k < last[2]; k++, count++) {
              sum += voxels[from + k];
              largest = Math.max(largest, voxels[from + k]);
            }
          }
        }
        data[target++] = isMask ? largest : sum / count;
      }
    }
  }
  return { data, shape: small };
}

function upload(unit, { data, shape: [slices, height, width] }) {
  gl.activeTexture(gl.TEXTURE0 + unit);
  gl.bindTexture(gl.TEXTURE_3D, gl.createTexture());
  for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T, gl.TEXTURE_WRAP_R]) {
    gl.texParameteri(gl.TEXTURE_3D, side, gl.CLAMP_TO_EDGE);
  }
  for (const when of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_3D, when, gl.LINEAR);
  gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  gl.texImage3D(gl.TEXTURE_3D, 0, gl.R8, width, height, slices, 0, gl.RED, gl.UNSIGNED_BYTE, data);
}

function compile() {
  const made = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
  gl.useProgram(made);
  return made;
}

function build(value, bytes) {
  const [slices, height, width] = value.shape;
  const voxels = slices * height * width;
  const mask = bytes.subarray(voxels).map((byte) => (byte >= IN_MASK ? 255 : 0));
  const spacing = value.spacing ?? [(GUESSED_HEIGHT * width) / slices, 1, 1];
  const lengths = value.shape.map((count, axis) => count * spacing[axis]);
  const diagonal = Math.hypot(...lengths);
  const flair = shrink(bytes.subarray(0, voxels), value.shape);
  program = compile();
  upload(0, flair);
  upload(1, shrink(mask, value.shape, true));
  set("flair", 0, "uniform1i");
  set("lesion", 1, "uniform1i");
  set("size", lengths.map((length) => (2 * length) / diagonal).reverse());
  set("voxel", flair.shape.map((count) => 1 / count).reverse());
  set("orange", ORANGE.map((part) => part / 255));
  set("white", value.window[1] / 255);
  return { ...value, lengths, diagonal, extents: extents(mask, value.shape), known: Boolean(value.spacing) };
}

// Voxels of the lesion, and first and last of them along slices, rows and columns
function extents(mask, [slices, height, width]) {
  const found = { voxels: 0, first: [slices, height, width], last: [-1, -1, -1] };
  for (let i = 0; i < mask.length; i++) {
    if (!mask[i]) continue;
    found.voxels++;
    const column = i % width;
    const row = ((i - column) / width) % height;
    [Math.floor(i / (width * height)), row, column].forEach((place, axis) => {
      if (place < found.first[axis]) found.first[axis] = place;
      if (place > found.last[axis]) found.last[axis] = place;
    });
  }
  return found;
}

function set(name, value, how = Array.isArray(value) ? `uniform${value.length}fv` : "uniform1f") {
  gl[how](gl.getUniformLocation(program, name), value);
}

// Drawing

const stepOf = (level) => 0.01 * Math.sqrt(level);

// The finest level at which a picture of this size stays within the time
function levelFor(pixels) {
  if (cost === null) return LEVELS.at(-1);
  return LEVELS.find((level) => (cost * pixels) / level ** 2 / stepOf(level) <= budget) ?? LEVELS.at(-1);
}

function draw() {
  frame = 0;
  if (!scene || gl.isContextLost()) return;
  const ratio = window.devicePixelRatio || 1;
  const level = levelFor(stage.clientWidth * stage.clientHeight * ratio ** 2);
  const picture = find(".picture");
  const [width, height] = [stage.clientWidth, stage.clientHeight].map((length) => Math.round((length * ratio) / level));
  if (!width || !height) return; // in a tab that is not open
  if (picture.width !== width || picture.height !== height) Object.assign(picture, { width, height });
  gl.viewport(0, 0, width, height);
  const [yaw, pitch] = [camera.yaw, camera.pitch].map((degrees) => (degrees * Math.PI) / 180);
  const towards = [Math.sin(yaw) * Math.cos(pitch), Math.cos(yaw) * Math.cos(pitch), -Math.sin(pitch)];
  const half = 0.85 / camera.zoom;
  const shorter = Math.min(width, height);
  set("forward", towards.map((part) => (Math.abs(part) < 1e-5 ? 1e-5 : part))); // the shader divides by it
  set("right", [Math.cos(yaw), -Math.sin(yaw), 0]);
  set("up", [Math.sin(yaw) * Math.sin(pitch), Math.cos(yaw) * Math.sin(pitch), Math.cos(pitch)]);
  set("extent", [(half * width) / shorter, (half * height) / shorter]);
  set("head", (camera.head / 50) ** 2);
  set("cut", camera.cut / 100);
  set("interval", stepOf(level));
  const before = performance.now();
  gl.drawArrays(gl.TRIANGLES, 0, 3);
  gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4)); // waits until it is drawn
  const took = (performance.now() - before) / ((width * height) / stepOf(level));
  cost = cost === null ? took : 0.5 * (cost + took);
}

function redraw(time) {
  budget = time;
  frame ||= requestAnimationFrame(draw);
}

function refresh() {
  if (!scene) return;
  clearTimeout(settle);
  settle = setTimeout(() => redraw(STILL), 250);
  redraw(MOVING);
  describe();
}

// Words

function direction() {
  const { yaw, pitch } = camera;
  const named = Object.entries(VIEWS).find(([, view]) => view.yaw === yaw && view.pitch === pitch)?.[0];
  if (named) return `seen from the ${named}`;
  const height = pitch ? `, ${Math.abs(Math.round(pitch))}° from ${pitch > 0 ? "above" : "below"}` : "";
  return `turned by ${Math.round(yaw)}° from the front${height}`;
}

function describe() {
  const { voxels, first, last } = scene.extents;
  const size = first.map((start, axis) => ((last[axis] - start + 1) * scene.lengths[axis]) / scene.shape[axis]);
  const volume = (voxels * scene.lengths.reduce((product, length, axis) => (product * length) / scene.shape[axis], 1)) / 1000;
  const where = `in slices ${first[0] + 1} to ${last[0] + 1} of ${scene.shape[0]}`;
  const measures = scene.known
    ? `${written(volume, 1)} ml, ${[size[2], size[1], size[0]].map((length) => written(length)).join("×")} mm across, back and up`
    : `${written(voxels)} voxels`;
  const lesion = voxels ? `The lesion: ${measures}, ${where}` : "There is no lesion at this threshold";
  const guessed = scene.known ? "" : " The height is a guess: the distance between slices is unknown.";
  const text = `${lesion}. Threshold ${scene.threshold.toFixed(2)}.${guessed}`;
  if (status.textContent !== text) status.textContent = text; // a screen reader repeats what is set again
  find(".picture").setAttribute("aria-label", `The head in 3-D${voxels ? " with the lesion in orange" : ""}, ${direction()}. ${text}`);
  for (const input of root.querySelectorAll("[data-set]")) input.value = camera[input.dataset.set];
  for (const button of root.querySelectorAll("[data-from]")) {
    const view = VIEWS[button.dataset.from];
    button.setAttribute("aria-pressed", view.yaw === camera.yaw && view.pitch === camera.pitch);
  }
}

// Hands on it

function turn(yaw, pitch) {
  const around = camera.yaw + yaw;
  camera.yaw = around - 360 * Math.round(around / 360);
  camera.pitch = clamp(camera.pitch + pitch, -90, 90);
  refresh();
}

function zoom(factor) {
  camera.zoom = clamp(camera.zoom * factor, 1, MAX_ZOOM);
  refresh();
}

function reset() {
  camera = { ...FIRST };
  refresh();
}

root.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button === opener) return content.hidden ? open() : close();
  if (!scene) return;
  if (button.dataset.from) Object.assign(camera, VIEWS[button.dataset.from]);
  if (button.dataset.do) return reset();
  if (button.dataset.zoom) return zoom(Number(button.dataset.zoom));
  refresh();
});

root.addEventListener("input", (event) => {
  camera[event.target.dataset.set] = Number(event.target.value);
  refresh();
});

const pointers = new Map(); // id -> [x, y]

stage.addEventListener("pointerdown", (event) => {
  if (!scene || event.button === 2) return;
  find(".picture").setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
});

stage.addEventListener("pointermove", (event) => {
  const last = pointers.get(event.pointerId);
  if (!last || !scene) return;
  const next = [event.clientX, event.clientY];
  const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
  pointers.set(event.pointerId, next);
  if (!other) return turn((next[0] - last[0]) * TURN_PER_PIXEL, (next[1] - last[1]) * TURN_PER_PIXEL);
  const distance = (from) => Math.max(1, Math.hypot(from[0] - other[0], from[1] - other[1]));
  zoom(distance(next) / distance(last));
});

for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, (event) => pointers.delete(event.pointerId));

stage.addEventListener(
  "wheel",
  (event) => {
    if (!scene || !(event.ctrlKey || event.metaKey)) return; // without, the wheel scrolls the page
    event.preventDefault();
    zoom(Math.exp(-clamp(event.deltaY, -60, 60) / 200));
  },
  { passive: false },
);

stage.addEventListener("keydown", (event) => {
  if (!scene || event.ctrlKey || event.metaKey || event.altKey) return;
  const keys = {
    ArrowLeft: () => turn(-TURN, 0),
    ArrowRight: () => turn(TURN, 0),
    ArrowUp: () => turn(0, -TURN),
    ArrowDown: () => turn(0, TURN),
    "+": () => zoom(1.25),
    "=": () => zoom(1.25),
    "-": () => zoom(0.8),
    r: reset,
    R: reset,
  };
  if (!keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});

stage.addEventListener("webglcontextlost", lose, { capture: true }); // it does not bubble

new ResizeObserver(() => redraw(STILL)).observe(stage);
watch("value", renew);
renew();
