// Draws what `Desk.look` holds: for each model the photograph with the colours of its classes, or how sure it is.
// All of it happens in the browser, so opacity and hidden classes change at once.
const chosen = { view: "overlay", opacity: 0.55, hidden: new Set() };

const make = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};

const pixels = async (url, [width, height]) => {
  const image = make("img", { src: url });
  await image.decode();
  const context = make("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0, width, height);
  return context.getImageData(0, 0, width, height).data;
};

const paint = (pane) => {
  const { context, photograph, labels, sure, colours } = pane;
  const image = context.createImageData(context.canvas.width, context.canvas.height);
  for (let at = 0; at < image.data.length; at += 4) {
    const label = labels[at], shown = !chosen.hidden.has(pane.names[label]);
    // the background keeps the photograph's colours in the overlay, and has its own in the mask
    const share = chosen.view === "photograph" || !shown ? 0
      : chosen.view === "mask" ? 1 : chosen.view === "overlay" && label ? chosen.opacity : 0;
    for (let channel = 0; channel < 3; channel++) {
      image.data[at + channel] = chosen.view === "confidence"
        ? sure[at] : (1 - share) * photograph[at + channel] + share * colours[label][channel];
    }
    image.data[at + 3] = 255;
  }
  context.putImageData(image, 0, 0);
};

const draw = async () => {
  const root = element.querySelector(".viewer");
  const told = props.value ? JSON.parse(props.value) : null;
  if (!told) {
    root.replaceChildren(make("div", { className: "empty", textContent: "Drop a photograph to see what the model sees." }));
    return;
  }
  const names = Object.keys(told.classes), colours = Object.values(told.classes);
  const photograph = await pixels(told.photograph, told.size);
  const panes = await Promise.all(told.panes.map(async (one) => {
    const canvas = make("canvas", { width: told.size[0], height: told.size[1] });
    const pane = {
      title: one.title, names, colours, photograph, context: canvas.getContext("2d"),
      labels: await pixels(one.labels, told.size), sure: await pixels(one.sure, told.size),
    };
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `what ${one.title} sees`);
    pane.under = make("output", { textContent: "Point at the picture to read a pixel. In the view of confidence, white is sure." });
    canvas.onpointermove = (event) => {
      const box = canvas.getBoundingClientRect(), scale = Math.min(box.width / canvas.width, box.height / canvas.height);
      const x = Math.floor((event.clientX - box.left) / scale), y = Math.floor((event.clientY - box.top) / scale);
      if (x >= canvas.width || y >= canvas.height) return;
      const at = 4 * (y * canvas.width + x);
      pane.under.textContent = `${names[pane.labels[at]]}, ${Math.round(pane.sure[at] / 2.55)} % sure`;
    };
    return pane;
  }));
  const repaint = () => panes.forEach(paint);

  const views = ["overlay", "mask", "confidence", "photograph"].map((view) => make("label", {},
    make("input", { type: "radio", name: "view", value: view, checked: view === chosen.view,
      onchange: () => { chosen.view = view; repaint(); } }), view));
  const opacity = make("input", { type: "range", min: 0, max: 1, step: 0.05, value: chosen.opacity,
    oninput: (event) => { chosen.opacity = Number(event.target.value); repaint(); } });

  const seen = names.map((_, place) => place).filter((place) => told.panes.some((one) => one.shares[place] > 0));
  const rows = seen.map((place) => make("tr", {},
    make("td", {}, make("label", {},
      make("input", { type: "checkbox", checked: !chosen.hidden.has(names[place]), onchange: (event) => {
        chosen.hidden[event.target.checked ? "delete" : "add"](names[place]);
        repaint();
      } }),
      make("i", { style: `background: rgb(${colours[place]})` }), names[place])),
    ...told.panes.map((one) => make("td", { textContent: `${one.shares[place].toFixed(1)} %` }))));
  const head = make("tr", {}, make("th", { textContent: "class" }),
    ...panes.map((pane) => make("th", { textContent: panes.length > 1 ? pane.title : "share of the picture" })));

  root.replaceChildren(
    make("div", { className: "controls" }, ...views, make("label", {}, "opacity", opacity)),
    make("div", { className: "panes" }, ...panes.map((pane) => make("figure", {},
      make("figcaption", { textContent: pane.title }), pane.context.canvas, pane.under))),
    make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  repaint();
};

watch("value", draw);
draw();
