// Gives roles to parts of Gradio's markup that assistive technology cannot make sense of.

function giveRoles() {
  // The place of a picture that is not there yet is named, and a name needs a role.
  for (const place of document.querySelectorAll("div.empty[aria-label]:not([role])")) place.setAttribute("role", "img");
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
}

giveRoles();
new MutationObserver(giveRoles).observe(document.body, { childList: true, subtree: true });
