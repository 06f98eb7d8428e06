// Mends parts of Gradio's markup that assistive technology cannot make sense of, downloads that fail in silence, and
// files that are dropped in the wrong place.

const GONE = "The file is no longer on the server, which deletes results within the hour. Run the model again.";
const RESULTS = "#measurements, #volume-measurements, #compare-facts, #about-layer";

let visitorsLanguage = "en";

function giveRoles() {
  // The place of a picture that is not there yet is named, and a name needs a role.
  for (const place of document.querySelectorAll("div.empty[aria-label]:not([role])")) place.setAttribute("role", "img");
  // Results, and what is wrong with the input, appear far from where the focus is.
  for (const facts of document.querySelectorAll(RESULTS)) {
    if (!facts.hasAttribute("role")) facts.setAttribute("role", "status");
  }
  // The button that adds files holds another one, which does the work.
  for (const inner of document.querySelectorAll("button:not([role]) button.upload-container")) {
    const outer = inner.parentElement.closest("button");
    outer.setAttribute("role", "group");
    outer.setAttribute("aria-label", "More files");
    outer.setAttribute("title", "Upload more files");
    outer.tabIndex = -1;
  }
  // A download is a link around a button: one of them is enough for the keyboard.
  for (const button of document.querySelectorAll("a[download] > button")) button.tabIndex = -1;
  // The head of a message folds it, and holds the button that closes it, which is all that a keyboard needs.
  for (const head of document.querySelectorAll(".toast-header[role=button]")) {
    head.removeAttribute("role");
    head.removeAttribute("tabindex");
  }
  // A text that Gradio has no words for
  for (const state of document.querySelectorAll("[role=status]")) {
    for (const node of state.childNodes) {
      if (node.nodeType === Node.TEXT_NODE && node.data.trim() === "common.complete") node.data = "Done"; // Gradio keeps it
    }
  }
  // Gradio states the visitor's language, in which only some words of its own are; the page is in English.
  const root = document.documentElement;
  if (root.lang !== "en") [visitorsLanguage, root.lang] = [root.lang, "en"];
  for (const own of document.querySelectorAll("footer, .upload-container")) own.lang = visitorsLanguage;
}

// A download of what is gone by now ends without a word: says so.
async function checkDownload(event) {
  const link = event.target.closest?.("a[download][href]");
  if (!link) return;
  const place = link.parentElement; // Gradio makes the link anew
  const response = await fetch(link.href, { method: "HEAD" }).catch(() => null);
  document.getElementById("gone")?.remove();
  if (!response || response.ok) return;
  const message = document.createElement("p");
  Object.assign(message, { id: "gone", className: "notice", role: "alert", textContent: GONE });
  place.after(message);
}

// A file that is dropped beside the places for uploads would be opened in place of the page, and all that is on it lost.
function keepPage(event) {
  if (event.defaultPrevented || !event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  event.dataTransfer.dropEffect = "none";
}

giveRoles();
new MutationObserver(giveRoles).observe(document.body, { childList: true, subtree: true, characterData: true });
new MutationObserver(giveRoles).observe(document.documentElement, { attributeFilter: ["lang"] });
document.addEventListener("click", checkDownload, { capture: true });
for (const type of ["dragover", "drop"]) window.addEventListener(type, keepPage);
