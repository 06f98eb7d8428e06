// What people do with the viewer, by mouse, touch, keys and buttons; goes on from viewer.js.

const MAX_ZOOM = 16;
const WHEEL_NOTCH = 40; // pixels of wheel movement that turn one slice; a touchpad sends many small ones
const SWIPE = 14; // pixels of a finger's way that turn one slice
const STILL = 4; // pixels that a click may move

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
  const value = event.detail;
  if (!(value > 0 && value < 1)) return; // half typed: the slider takes it into its range when it is left
  threshold = value;
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
  if (!pointers.delete(event.pointerId)) return; // it was pressed elsewhere
  if (!view || gesture.way >= STILL || event.button !== 0) return;
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
  if (profile.hasPointerCapture(event.pointerId)) goTo(Math.floor((event.offsetX / profile.clientWidth) * view.slices));
});

new ResizeObserver(() => view && (frame ||= requestAnimationFrame(draw))).observe(stage);
watch("value", () => show(props.value));
show(props.value);
