"use strict";
// Draws the layout that Python computed; see layout.py for what the fields mean.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { tokens, layers, value, threshold, relativeTo, largest } = data;
  const { edges, severed, sourceSide, drawnShare } = data;
  const columns = tokens.length;
  const flow = floats(data.flow);  // of edge (layer, head, tail)
  const nodeFlow = flowThroughNodes();
  const widestLine = 7, curveClasses = 24, shownCharacters = 16;
  const left = 70, right = 80, top = 16, labelGap = 20;
  const main = document.getElementById("diagram");
  const reading = document.getElementById("reading");
  const from = document.getElementById("from"), to = document.getElementById("to");
  let pinned = null;

  function floats(base64) {
    const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return Float32Array.from(
      { length: bytes.length / 4 }, (_, place) => view.getFloat32(4 * place, true));
  }

  function flowThroughNodes() {
    const through = new Float64Array((layers + 1) * columns);
    for (let place = 0; place < flow.length; place++) {
      const tail = place % columns;
      const head = Math.floor(place / columns) % columns;
      const layer = Math.floor(place / columns / columns);
      through[layer * columns + tail] += flow[place];
      if (layer === layers - 1) through[layers * columns + head] += flow[place];
    }
    return through;
  }

  function element(name, attributes, parent) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, given] of Object.entries(attributes)) made.setAttribute(key, given);
    if (parent) parent.append(made);
    return made;
  }

  // Edges of similar width share a path: few elements, however many edges.
  function drawEdges(parent, sheet, drawn) {
    const curves = new Map();
    for (const { layer, tail, head, width, severed } of drawn) {
      if (layer < sheet.bottom || layer >= sheet.top) continue;
      const size = Math.ceil(width * curveClasses);
      const key = `${size} ${severed ? "severed" : ""}`;
      const x0 = sheet.x(tail), x1 = sheet.x(head);
      const y0 = sheet.y(layer), y1 = sheet.y(layer + 1), third = (y1 - y0) / 3;
      const curve = `M${x0} ${y0}C${x0} ${y0 + third} ${x1} ${y1 - third} ${x1} ${y1}`;
      curves.set(key, (curves.get(key) || "") + curve);
    }
    const ordered = [...curves].sort((a, b) => parseInt(a[0]) - parseInt(b[0]));
    for (const [key, d] of ordered) {
      const [size, kind] = key.split(" ");
      const width = size / curveClasses;
      element("path", {
        d, class: kind, "stroke-width": Math.max(widestLine * width, 0.6).toFixed(2),
        "stroke-opacity": (0.3 + 0.5 * Math.sqrt(width)).toFixed(2),
      }, parent);
    }
  }

  function allEdges() {
    return edges.map((place, number) => {
      const at = ends(place);
      const width = Math.min(flow[place] / largest[at.layer], 1);  // floats are rounded
      return { ...at, width, severed: severed[number] === 1 };
    });
  }

  function ends(place) {
    return {
      tail: place % columns,
      head: Math.floor(place / columns) % columns,
      layer: Math.floor(place / columns / columns),
    };
  }

  // What node (row, column) passes on, if every node mixes what arrives.
  function trace(row, column) {
    let share = new Float64Array(columns);
    share[column] = 1;
    const passed = [];
    const most = new Float64Array(layers);
    for (let layer = row; layer < layers; layer++) {
      const arrived = new Float64Array(columns);
      for (let head = 0; head < columns; head++) {
        for (let tail = 0; tail < columns; tail++) {
          if (share[tail] === 0) continue;
          const place = (layer * columns + head) * columns + tail;
          const amount = flow[place] * share[tail];
          if (amount === 0) continue;
          arrived[head] += amount;
          most[layer] = Math.max(most[layer], amount);
          passed.push([place, amount]);
        }
      }
      share = arrived.map((amount, head) =>
        amount && amount / nodeFlow[(layer + 1) * columns + head]);
    }
    if (relativeTo === "network") most.fill(Math.max(...most));
    return passed
      .map(([place, amount]) => ({ ...ends(place), amount }))
      .map((edge) => ({ ...edge, width: edge.amount / most[edge.layer] }))
      .filter(({ width }) => width >= threshold);
  }

  function textWidth(texts) {
    const context = document.createElement("canvas").getContext("2d");
    context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    return texts.reduce((most, text) => Math.max(most, context.measureText(text).width), 0);
  }

  function shorten(token) {
    const characters = [...token];
    return characters.length <= shownCharacters
      ? token : characters.slice(0, shownCharacters - 1).join("") + "…";
  }

  function place(labels) {
    const bottom = Number(from.value), topRow = Number(to.value);
    const longest = textWidth(labels) + 10;
    const room = (main.clientWidth - left - right) / columns;
    const turned = room < longest && columns > 12;
    const column = Math.max(turned ? 18 : longest + 4, Math.min(room, 120));
    const row = Math.min(90, Math.max(44, (window.innerHeight - 300) / (topRow - bottom)));
    const height = top + row * (topRow - bottom);
    return {
      bottom, top: topRow, turned, column,
      labels: height + labelGap,
      width: left + column * columns + right,
      height: height + labelGap + (turned ? longest + 8 : 30),
      x: (position) => left + column * (position + 0.5),
      y: (layer) => top + row * (topRow - layer),
    };
  }

  function drawNodes(svg, sheet) {
    const most = Math.max(...nodeFlow, Number.MIN_VALUE);
    for (let layer = sheet.bottom; layer <= sheet.top; layer++) {
      for (let column = 0; column < columns; column++) {
        const index = layer * columns + column, share = nodeFlow[index] / most;
        const at = { cx: sheet.x(column), cy: sheet.y(layer) };
        const side = share === 0 ? "idle" : sourceSide && !sourceSide[index] ? "sink-side" : "";
        element("circle", {
          ...at, r: share ? (2 + 7 * Math.sqrt(share)).toFixed(2) : 1.2, class: `node ${side}`,
        }, svg);
        const hit = element("circle", { ...at, r: 9, class: "hit" }, svg);
        react(hit, svg, sheet, layer, column);
      }
    }
  }

  function drawTokens(svg, sheet, labels) {
    const most = Math.max(...nodeFlow.subarray(0, columns), Number.MIN_VALUE);
    labels.forEach((label, column) => {
      const token = element("g", {
        class: "token", tabindex: 0, role: "button", "data-position": column,
        transform: `translate(${sheet.x(column)} ${sheet.labels})${sheet.turned ? "rotate(-90)" : ""}`,
      }, svg);
      const long = textWidth([label]) + 8;
      element("rect", {
        x: sheet.turned ? -long : -long / 2, y: sheet.turned ? -8 : 0, rx: 3,
        width: long, height: sheet.turned ? 16 : 20,
        "fill-opacity": (0.45 * nodeFlow[column] / most).toFixed(3),
      }, token);
      const text = element("text", {
        x: sheet.turned ? -4 : 0, y: sheet.turned ? 4 : 14,
        "text-anchor": sheet.turned ? "end" : "middle",
      }, token);
      text.textContent = label;
      element("title", {}, token).textContent = tokens[column];
      react(token, svg, sheet, 0, column);
    });
  }

  function react(target, svg, sheet, row, column) {
    const show = () => showTrace(target, svg, sheet, row, column);
    target.addEventListener("mouseenter", () => pinned || show());
    target.addEventListener("focus", () => pinned || show());
    target.addEventListener("mouseleave", () => pinned || hideTrace(svg));
    target.addEventListener("blur", () => pinned || hideTrace(svg));
    target.addEventListener("click", (event) => {
      event.stopPropagation();
      const again = pinned === target;
      hideTrace(svg);
      pinned = again ? null : target;
      if (pinned) show();
    });
  }

  function showTrace(target, svg, sheet, row, column) {
    hideTrace(svg);
    target.classList.add("active");
    svg.classList.add("tracing");
    drawEdges(svg.querySelector(".trace"), sheet, trace(row, column));
    const amount = nodeFlow[row * columns + column];
    const share = value ? 100 * amount / value : 0;
    const where = row ? ` at layer ${row} passes on ` : " sends ";
    const token = document.createElement("bdi");  // keeps right-to-left text to itself
    token.textContent = tokens[column];
    const numbers = `${amount.toPrecision(3)}, ${share.toPrecision(3)} % of the flow`;
    reading.replaceChildren("“", token, `”${where}${numbers}`);
  }

  function hideTrace(svg) {
    svg.querySelectorAll(".active").forEach((shown) => shown.classList.remove("active"));
    svg.classList.remove("tracing");
    svg.querySelector(".trace").replaceChildren();
    reading.textContent = "Hover a token or a node to see where its flow goes; click to keep it.";
  }

  function drawRows(svg, sheet) {
    for (let row = sheet.bottom; row <= sheet.top; row++) {
      element("text", { class: "row", x: left - 10, y: sheet.y(row) + 4, "text-anchor": "end" }, svg)
        .textContent = row ? `layer ${row}` : "input";
      if (row === sheet.top) continue;
      element("text", { class: "row", x: sheet.width - right + 12, y: sheet.y(row + 0.5) + 4 }, svg)
        .textContent = `${(100 * drawnShare[row]).toFixed(0)} % drawn`;
    }
  }

  function draw() {
    pinned = null;
    const labels = tokens.map(shorten), sheet = place(labels);
    const svg = element("svg", {
      width: sheet.width, height: sheet.height, role: "img", "aria-label": document.title,
    });
    drawEdges(element("g", { class: "edges" }, svg), sheet, allEdges());
    element("g", { class: "trace" }, svg);
    drawRows(svg, sheet);
    drawNodes(svg, sheet);
    drawTokens(svg, sheet, labels);
    svg.addEventListener("click", () => { pinned = null; hideTrace(svg); });
    main.replaceChildren(svg);
    hideTrace(svg);
  }

  function offerLayers() {
    for (let row = 0; row <= layers; row++) {
      const name = row ? `layer ${row}` : "input";
      if (row < layers) from.add(new Option(name, row));
      if (row > 0) to.add(new Option(name, row));
    }
    to.value = layers;
    const choose = (changed, other, isWrong, mended) => changed.addEventListener("change", () => {
      if (isWrong()) other.value = mended();
      draw();
    });
    const isWrong = () => Number(from.value) >= Number(to.value);
    choose(from, to, isWrong, () => Number(from.value) + 1);
    choose(to, from, isWrong, () => Number(to.value) - 1);
  }

  offerLayers();
  draw();
  window.addEventListener("resize", draw);
})();
