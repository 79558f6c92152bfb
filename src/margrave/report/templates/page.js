"use strict";
// Draws every chart of the page. `ast` makes Vega interpret its expressions, because the page's
// Content-Security-Policy forbids evaluating text as code.
const EMBED = {
  ast: true, actions: false, renderer: "svg", mode: "vega-lite", tooltip: { theme: "custom" },
};

function draw(id, spec) {
  return vegaEmbed("#" + id, spec, EMBED).then((drawn) => drawn.view).catch((error) => {
    document.getElementById(id).textContent = "This chart cannot be drawn: " + error.message;
    throw error;
  });
}

for (const script of document.querySelectorAll("script[data-chart]")) {
  draw(script.dataset.chart, JSON.parse(script.textContent));
}
