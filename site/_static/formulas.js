// Every formula of a page stands in it as TeX; KaTeX sets it. One that KaTeX does not understand stays as it is, and
// the console says which.
document.addEventListener("DOMContentLoaded", () => {
  for (const place of document.querySelectorAll(".math")) {
    const source = place.textContent;
    try {
      katex.render(source, place, { displayMode: place.tagName === "DIV" });
    } catch (error) {
      place.textContent = source;
      console.error(`formula ${source}: ${error.message}`);
    }
  }
});
