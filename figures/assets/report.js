// Draws the figures of a page, follows light and dark, saves data and pictures, links selections.
(() => {
  "use strict";
  const page = JSON.parse(document.getElementById("figures-data").textContent);
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const touch = window.matchMedia("(pointer: coarse)").matches;
  const config = { displayModeBar: false, responsive: true, typesetMath: false };
  let dark = system.matches;
  let followsSystem = true;
  let selected = null;

  const plotOf = (figure) => document.getElementById("plot-" + figure.id);

  // A deep copy with each light colour swapped for its dark one; only under keys about colour, so
  // that a label that happens to read "#ffffff" stays what it is.
  function paint(value, toDark, coloured) {
    if (typeof value === "string") {
      return toDark && coloured && Object.hasOwn(page.dark, value) ? page.dark[value] : value;
    }
    if (Array.isArray(value)) return value.map((item) => paint(item, toDark, coloured));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(
      Object.entries(value).map(([key, item]) => [
        key,
        paint(item, toDark, coloured || /color/i.test(key)),
      ])
    );
  }

  function drawing(figure, toDark) {
    const layout = paint(figure.layout, toDark, false);
    layout.template = paint(page.template, toDark, false);
    layout.template = { layout: layout.template.layout };
    layout.autosize = true;
    if (touch) layout.dragmode = false;
    return { data: paint(figure.data, toDark, false), layout };
  }

  // The rectangle that marks the selected layer (and kind) in one trace, or null.
  function frame(trace) {
    const link = trace.meta;
    if (!selected || !link || !link.link) return null;
    const row = link.layers.indexOf(selected.layer);
    if (row < 0) return null;
    const x = trace.xaxis || "x";
    const y = trace.yaxis || "y";
    const line = { color: dark ? "#ffd166" : "#d1006c", width: 2 };
    const shape = { type: "rect", line, layer: "above" };
    if (link.link === "bar") {
      return { ...shape, xref: x, yref: y + " domain", x0: row - 0.5, x1: row + 0.5, y0: 0, y1: 1 };
    }
    const rows = { yref: y, y0: row - 0.5, y1: row + 0.5 };
    const column = link.kinds ? link.kinds.indexOf(selected.kind) : -1;
    if (column < 0) return { ...shape, ...rows, xref: x + " domain", x0: 0, x1: 1 };
    return { ...shape, ...rows, xref: x, x0: column - 0.5, x1: column + 0.5 };
  }

  function shapes(figure) {
    const own = paint(figure.layout.shapes || [], dark, false);
    return own.concat(figure.data.map(frame).filter(Boolean));
  }

  function select(choice) {
    const same =
      choice && selected && choice.layer === selected.layer && choice.kind === selected.kind;
    selected = same ? null : choice;
    for (const figure of page.figures) {
      if (figure.data.some((trace) => trace.meta && trace.meta.link)) {
        Plotly.relayout(plotOf(figure), { shapes: shapes(figure) });
      }
    }
    const status = document.getElementById("selection");
    if (!status) return;
    status.hidden = !selected;
    if (!selected) return;
    const layer = selected.layer < 0 ? "outside the layers" : "layer " + selected.layer;
    const kind = selected.kind ? ", " + selected.kind : "";
    status.textContent = "Selected: " + layer + kind + ". Click it again or press Esc to clear.";
  }

  function clicked(event) {
    const point = event.points[0];
    const link = point && point.data.meta;
    if (!link || !link.link) return;
    const row = Math.round(link.link === "bar" ? point.x : point.y);
    const kind = link.kinds ? link.kinds[Math.round(point.x)] : null;
    select({ layer: link.layers[row], kind });
  }

  function drawAll(toDark) {
    for (const figure of page.figures) {
      const element = plotOf(figure);
      if (!element) continue;
      const fresh = !element.classList.contains("js-plotly-plot");
      const { data, layout } = drawing(figure, toDark);
      if (selected) layout.shapes = shapes(figure);
      Plotly.react(element, data, layout, config);
      if (fresh) element.on("plotly_click", clicked);
    }
  }

  function show(toDark) {
    dark = toDark;
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    const button = document.getElementById("theme");
    if (button) button.textContent = dark ? "Light" : "Dark";
    drawAll(dark);
  }

  const KINDS = {
    f4: Float32Array, f8: Float64Array, i1: Int8Array, i2: Int16Array, i4: Int32Array,
    u1: Uint8Array, u2: Uint16Array, u4: Uint32Array,
  };

  // Packed arrays as nested lists, undefined values as null.
  function unpack(value) {
    if (Array.isArray(value)) return value.map(unpack);
    if (value === null || typeof value !== "object") return value;
    if (typeof value.bdata === "string") {
      const bytes = Uint8Array.from(atob(value.bdata), (char) => char.charCodeAt(0));
      const numbers = Array.from(new KINDS[value.dtype](bytes.buffer), (number) =>
        Number.isFinite(number) ? Number(number.toPrecision(7)) : null
      );
      const shape = value.shape ? String(value.shape).split(",").map(Number) : [numbers.length];
      if (shape.length < 2) return numbers;
      return Array.from({ length: shape[0] }, (_, row) =>
        numbers.slice(row * shape[1], (row + 1) * shape[1])
      );
    }
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, unpack(item)]));
  }

  function saveData(figure) {
    const body = JSON.stringify(unpack(figure), null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([body], { type: "application/json" }));
    link.download = figure.id + ".json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // Pictures are always light, on white: they are for papers.
  function savePicture(figure, format) {
    const { data, layout } = drawing(figure, false);
    const width = Math.max(plotOf(figure).clientWidth, 700);
    const options = { format, width, height: layout.height, filename: figure.id };
    if (format === "png") options.scale = 2;
    Plotly.downloadImage({ data, layout, config }, options);
  }

  function listen() {
    for (const button of document.querySelectorAll("[data-save]")) {
      const figure = page.figures.find((item) => item.id === button.dataset.figure);
      const kind = button.dataset.save;
      button.addEventListener("click", () =>
        kind === "json" ? saveData(figure) : savePicture(figure, kind)
      );
    }
    const toggle = document.getElementById("theme");
    if (toggle) {
      toggle.addEventListener("click", () => {
        followsSystem = false;
        show(!dark);
      });
    }
    system.addEventListener("change", (event) => followsSystem && show(event.matches));
    document.addEventListener("keydown", (event) => event.key === "Escape" && select(null));
    let before = false;
    window.addEventListener("beforeprint", () => {
      before = dark;
      show(false);
      for (const figure of page.figures) Plotly.relayout(plotOf(figure), { width: 700 });
    });
    window.addEventListener("afterprint", () => show(before));
  }

  // Marks the section being read in the contents.
  function follow() {
    const links = new Map();
    for (const link of document.querySelectorAll('nav a[href^="#section-"]')) {
      links.set(link.getAttribute("href").slice(1), link);
    }
    const sections = [...document.querySelectorAll("main > section")];
    const seen = new Set();
    const watcher = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) seen[entry.isIntersecting ? "add" : "delete"](entry.target);
        const here = sections.find((section) => seen.has(section));
        for (const [id, link] of links) link.classList.toggle("here", !!here && id === here.id);
      },
      { rootMargin: "-10% 0px -75% 0px" }
    );
    for (const section of sections) watcher.observe(section);
  }

  show(dark);
  listen();
  follow();
  document.documentElement.dataset.drawn = String(page.figures.length);
})();
