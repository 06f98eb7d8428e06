// In the views of volumes: the mouse wheel turns the slices, and a click on the plot of areas goes to that slice.

const PIXELS_PER_SLICE = 40; // of wheel movement; a notch of most mice is 100 or more, a touchpad sends many small ones
let moved = 0;

function sliderOf(id) {
  return document.querySelector(`#${id}-slice input[type=range]`);
}

function goTo(slider, number) {
  slider.value = Math.min(Math.max(number, slider.min), slider.max);
  slider.dispatchEvent(new Event("input", { bubbles: true }));
}

document.addEventListener(
  "wheel",
  (event) => {
    const view = event.target.closest("#volume-view, #compare-view");
    const slider = view && sliderOf(view.id.replace("-view", ""));
    if (!slider || event.ctrlKey) return; // with Ctrl, the wheel zooms the page
    event.preventDefault();
    moved += event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY : event.deltaY * PIXELS_PER_SLICE;
    if (Math.abs(moved) < PIXELS_PER_SLICE) return;
    goTo(slider, Number(slider.value) + Math.sign(moved));
    moved = 0;
  },
  { passive: false },
);

document.addEventListener("click", (event) => {
  const plot = event.target.closest("#volume-areas svg");
  const bars = plot ? [...plot.querySelectorAll(".mark-rect.role-mark path")] : [];
  const slider = sliderOf("volume");
  if (!slider || !bars.length) return;
  const distances = bars.map((bar) => {
    const { left, width } = bar.getBoundingClientRect();
    return Math.abs(left + width / 2 - event.clientX);
  });
  goTo(slider, 1 + distances.indexOf(Math.min(...distances)));
});
