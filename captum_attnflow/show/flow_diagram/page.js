"use strict";
// Draws the layout that Python computed; see layout.py for what the fields mean.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { tokens, layers, value, threshold, relativeTo, largest } = data;
  const { edges, severed, sourceSide, drawnShare, signed, direct, amounts } = data;
  const columns = tokens.length;
  const flow = floats(data.flow);  // of edge (layer, head, tail)
  const nodeFlow = flowThroughNodes();
  const widestLine = 7, curveClasses = 24, shownCharacters = 16;
  const left = 70, right = 80, top = 16, labelGap = 20, amountFont = 11;
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

  // What token j sends, past the layers too.
  function sent(column) {
    return nodeFlow[column] + (direct ? direct[column] : 0);
  }

  function largestOf(numbers) {
    return numbers.reduce((most, number) => Math.max(most, Math.abs(number)), Number.MIN_VALUE);
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
    for (const { layer, tail, head, width, kind } of drawn) {
      if (layer < sheet.bottom || layer >= sheet.top) continue;
      const size = Math.ceil(width * curveClasses);
      const key = `${size} ${kind}`;
      const x0 = sheet.x(tail), x1 = sheet.x(head);
      const y0 = sheet.y(layer), y1 = sheet.y(layer + 1), third = (y1 - y0) / 3;
      const curve = `M${x0} ${y0}C${x0} ${y0 + third} ${x1} ${y1 - third} ${x1} ${y1}`;
      curves.set(key, (curves.get(key) || "") + curve);
    }
    const ordered = [...curves].sort((a, b) => parseInt(a[0]) - parseInt(b[0]));
    for (const [key, d] of ordered) {
      const [size, kind] = key.split(" ");
      const width = size / curveClasses, line = Math.max(widestLine * width, 0.6);
      const dash = Math.max(5, 1.2 * line);
      element("path", {
        d, class: kind, "stroke-width": line.toFixed(2),
        "stroke-opacity": (0.3 + 0.5 * Math.sqrt(width)).toFixed(2),
        ...(kind === "negative" && { "stroke-dasharray": `${dash} ${0.6 * dash}` }),
      }, parent);
    }
  }

  function allEdges() {
    return edges.map((place, number) => {
      const at = ends(place);
      const width = Math.min(Math.abs(flow[place]) / largest[at.layer], 1);  // rounded floats
      return { ...at, width, kind: severed[number] ? "severed" : signOf(flow[place]) };
    });
  }

  function signOf(amount) {
    return amount < 0 ? "negative" : "";
  }

  function ends(place) {
    return {
      tail: place % columns,
      head: Math.floor(place / columns) % columns,
      layer: Math.floor(place / columns / columns),
    };
  }

  // What node (row, column) passes on, if every node mixes what arrives.
  function mixed(row, column) {
    let share = new Float64Array(columns);
    share[column] = 1;
    const passed = [];
    for (let layer = row; layer < layers; layer++) {
      const arrived = new Float64Array(columns);
      for (let head = 0; head < columns; head++) {
        for (let tail = 0; tail < columns; tail++) {
          if (share[tail] === 0) continue;
          const place = (layer * columns + head) * columns + tail;
          const amount = flow[place] * share[tail];
          if (amount === 0) continue;
          arrived[head] += amount;
          passed.push([place, amount]);
        }
      }
      share = arrived.map((amount, head) =>
        amount && amount / nodeFlow[(layer + 1) * columns + head]);
    }
    return passed;
  }

  // The edges of node (row, column). Flows of two signs cancel where they meet: what
  // arrives has no share of what leaves, so a signed flow is followed no further.
  function touching(row, column) {
    const places = [];
    for (let other = 0; other < columns; other++) {
      if (row < layers) places.push((row * columns + other) * columns + column);
      if (row > 0) places.push(((row - 1) * columns + column) * columns + other);
    }
    return places.filter((place) => flow[place] !== 0).map((place) => [place, flow[place]]);
  }

  function trace(row, column) {
    const passed = (signed ? touching : mixed)(row, column)
      .map(([place, amount]) => ({ ...ends(place), amount, kind: signOf(amount) }));
    const most = new Float64Array(layers);
    for (const { layer, amount } of passed) {
      most[layer] = Math.max(most[layer], Math.abs(amount));
    }
    if (relativeTo === "network") most.fill(Math.max(...most));
    return passed
      .map((edge) => ({ ...edge, width: Math.abs(edge.amount) / most[edge.layer] }))
      .filter(({ width }) => width >= threshold);
  }

  function textWidth(texts, size = 12) {
    const context = document.createElement("canvas").getContext("2d");
    context.font = `${size}px ${getComputedStyle(document.body).fontFamily}`;
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
    const number = textWidth(amounts.flatMap(([, numbers]) => numbers), amountFont) + 10;
    const widest = Math.max(longest, amounts.length ? number : 0);
    const room = (main.clientWidth - left - right) / columns;
    const turned = room < widest && columns > 12;
    const column = Math.max(turned ? 18 : widest + 4, Math.min(room, 120));
    const row = Math.min(90, Math.max(44, (window.innerHeight - 300) / (topRow - bottom)));
    const height = top + row * (topRow - bottom);
    const amountRow = turned ? number : 18;
    const labelsEnd = height + labelGap + (turned ? longest + 8 : 30);
    return {
      bottom, top: topRow, turned, column,
      labels: height + labelGap,
      width: left + column * columns + right,
      height: labelsEnd + amountRow * amounts.length,
      amounts: (row) => labelsEnd + amountRow * row,
      x: (position) => left + column * (position + 0.5),
      y: (layer) => top + row * (topRow - layer),
    };
  }

  function drawNodes(svg, sheet) {
    const most = largestOf(nodeFlow);
    for (let layer = sheet.bottom; layer <= sheet.top; layer++) {
      for (let column = 0; column < columns; column++) {
        const index = layer * columns + column, share = Math.abs(nodeFlow[index]) / most;
        const at = { cx: sheet.x(column), cy: sheet.y(layer) };
        const size = share ? 2 + 7 * Math.sqrt(share) : 1.2;
        if (nodeFlow[index] < 0) drawDiamond(svg, at, size);
        else {
          const side = share === 0 ? "idle" : sourceSide && !sourceSide[index] ? "sink-side" : "";
          element("circle", { ...at, r: size.toFixed(2), class: `node ${side}` }, svg);
        }
        const hit = element("circle", { ...at, r: 9, class: "hit" }, svg);
        react(hit, svg, sheet, layer, column);
      }
    }
  }

  function drawDiamond(svg, { cx, cy }, size) {
    const half = size.toFixed(2);
    const d = `M${cx} ${cy}m0 ${-half}l${half} ${half}l${-half} ${half}l${-half} ${-half}z`;
    element("path", { d, class: "node negative" }, svg);
  }

  function drawTokens(svg, sheet, labels) {
    const most = largestOf(tokens.map((_, column) => sent(column)));
    labels.forEach((label, column) => {
      const token = element("g", {
        class: `token ${signOf(sent(column))}`, tabindex: 0, role: "button", "data-position": column,
        transform: `translate(${sheet.x(column)} ${sheet.labels})${sheet.turned ? "rotate(-90)" : ""}`,
      }, svg);
      const long = textWidth([label]) + 8;
      element("rect", {
        x: sheet.turned ? -long : -long / 2, y: sheet.turned ? -8 : 0, rx: 3,
        width: long, height: sheet.turned ? 16 : 20,
        "fill-opacity": (0.45 * Math.abs(sent(column)) / most).toFixed(3),
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

  function drawAmounts(svg, sheet) {
    amounts.forEach(([name, numbers], row) => {
      const y = sheet.amounts(row) + amountFont;
      element("text", { class: "row", x: left - 10, y, "text-anchor": "end" }, svg)
        .textContent = name;
      numbers.forEach((number, column) => {
        const x = sheet.x(column) + (sheet.turned ? 4 : 0);
        const turn = sheet.turned ? { transform: `rotate(-90 ${x} ${y - amountFont})` } : {};
        element("text", {
          class: "amount", x, y: sheet.turned ? y - amountFont : y, ...turn,
          "text-anchor": sheet.turned ? "end" : "middle",
        }, svg).textContent = number;
      });
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
    const token = document.createElement("bdi");  // keeps right-to-left text to itself
    token.textContent = tokens[column];
    reading.replaceChildren("“", token, `”${(signed ? readSigned : read)(row, column)}`);
  }

  function read(row, column) {
    const amount = nodeFlow[row * columns + column];
    const share = value ? 100 * amount / value : 0;
    const where = row ? ` at layer ${row} passes on ` : " sends ";
    return `${where}${amount.toPrecision(3)}, ${share.toPrecision(3)} % of the flow`;
  }

  function readSigned(row, column) {
    const amount = row ? nodeFlow[row * columns + column] : sent(column);
    const where = row ? ` at layer ${row} passes on ` : " sends ";
    const share = value ? `, ${minus((100 * amount / value).toPrecision(3))} % of the output` : "";
    const past = row || !direct ? "" : `; ${withSign(direct[column])} of it on its direct edge`;
    return where + withSign(amount) + share + past;
  }

  function withSign(amount) {
    return (amount > 0 ? "+" : "") + minus(amount.toPrecision(3));
  }

  function minus(number) {
    return number.replaceAll("-", "−");
  }

  function hideTrace(svg) {
    svg.querySelectorAll(".active").forEach((shown) => shown.classList.remove("active"));
    svg.classList.remove("tracing");
    svg.querySelector(".trace").replaceChildren();
    const what = signed ? "its edges and their sum" : "where its flow goes";
    reading.textContent = `Hover a token or a node to see ${what}; click to keep it.`;
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
      class: signed ? "signed" : "",
    });
    drawEdges(element("g", { class: "edges" }, svg), sheet, allEdges());
    element("g", { class: "trace" }, svg);
    drawRows(svg, sheet);
    drawNodes(svg, sheet);
    drawTokens(svg, sheet, labels);
    drawAmounts(svg, sheet);
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
