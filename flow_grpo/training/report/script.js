"use strict";
// The page's data: {charts: [{title, note, lines: [{label, x, y, low, high}]}], galleries: [...], pictures: [url]}.
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
// Okabe and Ito's colours, told apart by colour-blind readers; the first is for light and dark paper alike.
const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#a07a4a", "#888888"];

// An element with its attributes and children; text is always text, never HTML.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function drawn(tag, attributes, text = "") {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

// Round numbers between two ends, about five of them, each with its label.
function ticks(low, high) {
  const raw = (high - low) / 4 || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(f => f * power).find(s => s >= raw);
  const made = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) made.push([i * step, short(i * step, step)]);
  return made;
}

// Three digits, or as many as tell a value from its neighbour a step away.
function short(value, step = Infinity) {
  if (value === 0) return "0";
  const digits = Math.min(12, Math.max(3, Math.floor(Math.log10(Math.abs(value))) - Math.floor(Math.log10(step)) + 1));
  return Math.abs(value) >= 1e4 || Math.abs(value) < 1e-3
    ? value.toExponential(digits - 2) : String(Number(value.toPrecision(digits)));
}

function plot(chart) {
  const width = 480, height = 240, left = 62, right = 10, top = 8, bottom = 26;
  const svg = drawn("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": chart.title});
  const hidden = new Set();
  const redraw = () => {
    svg.replaceChildren();
    const lines = chart.lines.filter((_, index) => !hidden.has(index));
    const xs = lines.flatMap(line => line.x), ys = lines.flatMap(line => [...line.y, ...line.low, ...line.high]);
    if (!xs.length) return;
    let [x0, x1] = [Math.min(...xs), Math.max(...xs)], [y0, y1] = [Math.min(...ys), Math.max(...ys)];
    if (x0 === x1) { x0 -= .5; x1 += .5; }
    if (y1 - y0 <= Math.abs(y0) * 1e-12) {  // a step below rounding would never reach its end
      const room = Math.abs(y0) * .1 || .5; y0 -= room; y1 += room; }
    const toX = x => left + (x - x0) / (x1 - x0) * (width - left - right);
    const toY = y => height - bottom - (y - y0) / (y1 - y0) * (height - top - bottom);
    for (const [y, label] of ticks(y0, y1)) {
      svg.append(drawn("line", {x1: left, x2: width - right, y1: toY(y), y2: toY(y), stroke: "currentColor", opacity: .15}),
        drawn("text", {x: left - 6, y: toY(y) + 4, "text-anchor": "end", "font-size": 11, fill: "currentColor"}, label));
    }
    for (const [x, label] of ticks(x0, x1))
      svg.append(drawn("text", {x: toX(x), y: height - 9, "text-anchor": "middle", "font-size": 11, fill: "currentColor"}, label));
    chart.lines.forEach((line, index) => {
      if (hidden.has(index)) return;
      const color = COLORS[index % COLORS.length];
      const points = values => values.map((y, i) => `${toX(line.x[i]).toFixed(1)},${toY(y).toFixed(1)}`);
      if (line.low.length)
        svg.append(drawn("polygon", {points: [...points(line.high), ...points(line.low).reverse()].join(" "), fill: color, opacity: .15}));
      svg.append(drawn("polyline", {points: points(line.y).join(" "), fill: "none", stroke: color, "stroke-width": 2}));
      if (line.x.length < 40) line.x.forEach((x, i) => {
        const dot = drawn("circle", {cx: toX(x), cy: toY(line.y[i]), r: 3, fill: color});
        dot.append(drawn("title", {}, `${line.label}, epoch ${x}: ${line.y[i]}`));
        svg.append(dot);
      });
    });
  };
  const legend = element("ul", {class: "legend"});
  chart.lines.forEach((line, index) => {
    const mark = element("i", {style: `background:${COLORS[index % COLORS.length]}`});
    const last = line.y.length ? ` ${short(line.y[line.y.length - 1])}` : "";
    const button = element("button", {type: "button", "aria-pressed": "true"}, mark, line.label + last);
    button.addEventListener("click", () => {
      hidden.has(index) ? hidden.delete(index) : hidden.add(index);
      button.setAttribute("aria-pressed", String(!hidden.has(index)));
      redraw();
    });
    legend.append(element("li", {}, button));
  });
  redraw();
  return element("article", {}, element("h3", {}, chart.title), element("p", {}, chart.note), svg, legend);
}

function gallery(given) {
  const slider = element("input", {type: "range", min: 0, max: given.sets.length - 1, value: given.sets.length - 1});
  const epoch = element("output");
  const choice = element("select", {}, element("option", {value: ""}, "image"),
    ...given.maps.map(name => element("option", {value: name}, `image with the map of ${name}`)));
  const tiles = element("div", {class: "tiles"});
  const redraw = () => {
    const set = given.sets[Number(slider.value)];
    epoch.textContent = `epoch ${set.epoch}`;
    slider.setAttribute("aria-valuetext", epoch.textContent);
    tiles.replaceChildren(...set.samples.map(sample => {
      // a map that is not valid has no picture: the plain image stands in its place
      const index = sample.overlays[choice.value] ?? sample.image;
      const score = sample.reward === null ? "unscored" : `reward ${sample.reward.toFixed(2)}`;
      const earned = sample.advantage === null ? "" : `, advantage ${sample.advantage >= 0 ? "+" : ""}${sample.advantage.toFixed(2)}`;
      const read = sample.read === null ? "" : `, read: ${sample.read || "nothing"}`;
      return element("figure", {}, element("img", {src: data.pictures[index], alt: sample.prompt, loading: "lazy"}),
        element("figcaption", {}, sample.prompt, element("small", {}, score + earned + read)));
    }));
  };
  for (const control of [slider, choice]) control.addEventListener("input", redraw);
  redraw();
  return element("article", {}, element("h3", {}, given.title),
    element("div", {class: "controls"}, element("label", {}, "epoch", slider, epoch), element("label", {}, "show", choice)), tiles);
}

document.getElementById("charts").replaceChildren(...data.charts.map(plot));
document.getElementById("galleries").replaceChildren(...data.galleries.map(gallery));
