// The viewer's pictures; goes on from viewer.js.

const ORANGE = [230, 159, 0]; // the colours of modeling.visualization: the outline, or A's in a comparison,
const BLUE = [86, 180, 233]; // B's,
const GREEN = [0, 158, 115]; // and what A and B share
const LINE = 2; // pixels of the screen

// Drawing: the slice's own pixels are painted on small canvases, which are then enlarged on the screen

const layer = () => document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const [greyLayer, fillLayer, lines] = [layer(), layer(), layer()];
const maskLayers = [layer(), layer()];

// Paint the shown slice of FLAIR or of the outline, each byte in its colour
function paint(target, plane, colours) {
  const { width, height } = view;
  const pixels = new Uint32Array(width * height);
  const start = index * pixels.length;
  for (let i = 0; i < pixels.length; i++) pixels[i] = colours[plane[start + i]];
  Object.assign(target.canvas, { width, height });
  target.putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), width, height), 0, 0);
}

const packed = ([red, green, blue]) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0; // little-endian RGBA
const css = (colour) => `rgb(${colour})`;
const forBytes = (value) => Uint32Array.from({ length: 256 }, (_, byte) => value(byte));

function paintGrey() {
  const low = display.level - display.window / 2;
  const greys = forBytes((value) => {
    const grey = clamp(Math.round((255 * (value - low)) / display.window), 0, 255);
    return packed([grey, grey, grey]);
  });
  paint(greyLayer, view.grey, greys);
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
  const areaColours = [null, ORANGE, BLUE, GREEN]; // in neither, in A, in B, in both
  const [inside] = all[0];
  const colourOf = view.kind === "comparison" ? (byte) => areaColours[byte] : (byte) => inside(byte) && ORANGE;
  paint(fillLayer, view.labels, forBytes((byte) => (colourOf(byte) ? packed(colourOf(byte)) : 0)));
  all.forEach(([test], number) => paint(maskLayers[number], view.labels, forBytes((byte) => (test(byte) ? 0xff000000 : 0))));
}

// The edges between the pixels that a test takes and the others, in pixels of the slice
function edges(test) {
  const { width, height } = view;
  const takes = forBytes((byte) => (test(byte) ? 1 : 0));
  const start = index * width * height;
  const stride = width + 1; // a column and a row of others beside the slice
  const taken = new Uint8Array(stride * (height + 2));
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      taken[(row + 1) * stride + column] = takes[view.labels[start + row * width + column]];
    }
  }
  const path = new Path2D();
  for (let row = 0; row <= height; row++) {
    for (let column = 0; column <= width; column++) {
      const here = (row + 1) * stride + column; // the column beside the slice ends one row, and begins the next
      if (taken[here] !== taken[here - stride]) {
        path.moveTo(column, row);
        path.lineTo(column + 1, row);
      }
      if (taken[here] !== taken[here - 1]) {
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
