// What HoloViews leaves out of its figures: a name for those who cannot see them, and their
// download as picture and as numbers.

const SAVED = {
  PNG: (plot) => plot.export("png").to_blob(),
  SVG: (plot) => plot.export("svg").to_blob(),
  CSV: async (plot) => new Blob([table(plot)], {type: "text/csv"}),
};

// The marks of a figure as they stand, a row each; series are told apart by the first column.
function table(plot) {
  const rows = plot.model.renderers.filter((one) => one.glyph.type !== "Text").flatMap(marks);
  // HoloViews keeps some columns twice, the second time under a name without signs.
  const names = [...new Set(rows.flatMap(Object.keys))].filter((name) => !/_parenthesis/.test(name));
  const lines = rows.map((row) => names.map((name) => quoted(row[name] ?? "")));
  return [names.map(quoted), ...lines].map((line) => line.join(",") + "\r\n").join("");
}

function marks(renderer) {
  const columns = Object.entries(renderer.data_source?.data ?? {});
  const count = Math.max(0, ...columns.map(([, values]) => values.length));
  return Array.from({length: count}, (_, i) =>
    Object.fromEntries([["series", renderer.name], ...columns.map(([name, values]) => [name, values[i]])]));
}

function quoted(value) {
  return `"${String(value).replaceAll('"', '""')}"`;
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function finish(figure, plot) {
  const caption = figure.querySelector("figcaption .caption-text").textContent;
  plot.el.setAttribute("role", "img");
  plot.el.setAttribute("aria-label", caption);
  const row = document.createElement("p");
  row.className = "figure-save";
  row.append("Save as ");
  for (const [kind, blob] of Object.entries(SAVED)) {
    const button = document.createElement("button");
    button.textContent = kind;
    button.onclick = async () => save(await blob(plot), `${figure.id}.${kind.toLowerCase()}`);
    row.append(button);
  }
  figure.querySelector("figcaption").before(row);
}

// Panel writes a slider's name above it, where only eyes find it.
function nameSliders() {
  for (const slider of window.Bokeh?.index?.query((view) => view.model.type === "Slider") ?? []) {
    const [name] = slider.parent.model.children[0].text.split(":");
    slider.shadow_el.querySelector(".noUi-handle").setAttribute("aria-label", name);
  }
}

// Bokeh draws when it likes, and puts each plot under shadow roots.
function place(plot) {
  let host = plot.el;
  while (host.getRootNode() !== document) host = host.getRootNode().host;
  return host.closest("figure");
}

const waiting = setInterval(() => {
  for (const plot of window.Bokeh?.index?.query((view) => view.model.type === "Figure") ?? []) {
    const figure = plot.el.isConnected && place(plot);
    if (figure && !figure.querySelector(".figure-save")) finish(figure, plot);
  }
  const drawn = document.querySelectorAll("figure:has([data-root-id]) .figure-save").length;
  if (drawn < document.querySelectorAll("figure:has([data-root-id])").length) return;
  nameSliders();
  clearInterval(waiting);
}, 250);
