// Draws the layout that Python computed; see layout.py for what the fields mean.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { tokens, positions, nOthers, layers, value, signed, direct, amounts } = data;
  const { threshold, relativeTo, lanes, sourceSide, widestLine } = data;
  const columns = tokens.length;
  const flow = floats(data.flow);  // between columns: of edge (layer, head, tail)
  const nodeFlow = flowThroughNodes();
  const edges = readEdges();
  const shownCharacters = 16, amountFont = 11, top = 18, labelGap = 16, foldedHeight = 26;
  const aside = 12;  // pixels, of two gathered streams from their column's middle
  const main = document.getElementById("diagram");
  const reading = document.getElementById("reading");
  const foldButton = document.getElementById("fold");
  const folded = new Set();  // layers, from 0
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
      const { layer, head, tail } = ends(place);
      through[layer * columns + tail] += flow[place];
      if (layer === layers - 1) through[layers * columns + head] += flow[place];
    }
    return through;
  }

  function readEdges() {
    const given = data.edges, amount = floats(given.amount), width = floats(given.width);
    return given.layer.map((layer, number) => ({
      layer, tail: given.tail[number], head: given.head[number],
      amount: amount[number], width: width[number],
      apart: given.apart[number], gathered: given.gathered[number],
    }));
  }

  // What token j sends, past the layers too.
  function sent(column) {
    return nodeFlow[column] + (direct ? direct[column] : 0);
  }

  function ends(place) {
    return {
      tail: place % columns,
      head: Math.floor(place / columns) % columns,
      layer: Math.floor(place / columns / columns),
    };
  }

  function element(name, attributes, parent) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, given] of Object.entries(attributes)) made.setAttribute(key, given);
    if (parent) parent.append(made);
    return made;
  }

  function write(words, attributes, parent) {
    const text = element("text", attributes, parent);
    text.textContent = words;
    return text;
  }

  // ---- Words

  function withSign(amount) {
    return (signed && amount > 0 ? "+" : "") + minus(amount.toPrecision(3));
  }

  function minus(number) {
    return number.replaceAll("-", "−");
  }

  function percent(amount) {
    const of = signed ? "output" : "flow";
    return value ? `, ${minus((100 * amount / value).toPrecision(3))} % of the ${of}` : "";
  }

  // Words, each token kept to itself where it is written from right to left.
  function say(...parts) {
    reading.replaceChildren(...parts.map((part) => {
      if (typeof part === "string") return part;
      const token = document.createElement("bdi");
      token.textContent = tokens[part.column];
      return token;
    }));
  }

  function sayNode(row, column) {
    const amount = row ? nodeFlow[row * columns + column] : sent(column);
    const where = row ? ` at layer ${row} passes on ` : " sends ";
    const past = row || !direct ? "" : `; ${withSign(direct[column])} of it on its direct edge`;
    const place = column < positions.length ? ` (token ${positions[column] + 1})` : "";
    say("“", { column }, "”", row ? "" : place, where + withSign(amount) + percent(amount) + past);
  }

  function sayEdge({ layer, tail, head, amount, apart }) {
    const kind = apart && !signed ? ", severed by the minimum cut" : "";
    say("“", { column: tail }, "” to “", { column: head },
      `” in layer ${layer + 1}: ${withSign(amount)}${percent(amount)}${kind}`);
  }

  function sayLane(lane, layer, amount) {
    say(`“${lane.name}” past layer ${layer + 1}: ${withSign(amount)}${percent(amount)}`);
  }

  function sayHint() {
    const what = signed ? "its edges and their sum" : "where its flow goes";
    say(`Hover or focus a token or a node to see ${what}; click to keep it. ` +
      "Arrow keys lead from node to node.");
  }

  // ---- Places

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
    const narrow = main.clientWidth < 600;
    const left = Math.max(66, 12 + textWidth(amounts.map(([name]) => name), 11));
    const right = data.hasGathered ? 64 : 16, lane = 78;
    const beside = lanes.filter((stream) => stream.column === null);
    const longest = textWidth(labels) + 10;
    const number = textWidth(amounts.flatMap(([, numbers]) => numbers), amountFont) + 10;
    const widest = Math.max(longest, amounts.length ? number : 0, 34);
    const room = (main.clientWidth - left - right - lane * beside.length) / columns;
    const turned = room < widest + 4;
    const column = turned ? Math.max(narrow ? 22 : 18, Math.min(room, 70)) : Math.min(room, 100);
    const levels = rowLevels(Math.min(90, Math.max(44, (window.innerHeight - 330) / layers)));
    const height = top + levels[layers];
    const amountRow = turned ? number : 18;
    const labelsEnd = height + labelGap + (turned ? longest + 8 : 30);
    // Streams of the others stand on both sides of their column's middle.
    const gap = nOthers ? 2 * Math.max(0, aside + 8 - column / 2) : 0;
    const end = left + column * columns + gap;
    const x = (position) => left + column * (position + 0.5) +
      (position >= positions.length ? gap / 2 : 0);
    return {
      turned, column, left, end: end + lane * beside.length,
      labels: height + labelGap,
      width: end + lane * beside.length + right,
      height: Math.max(labelsEnd + amountRow * amounts.length, height + labelGap + (beside.length ? 60 : 0)),
      amounts: (row) => labelsEnd + amountRow * row,
      x,
      lane: (stream) => stream.column === null
        ? end + lane * (beside.indexOf(stream) + 0.5) : x(stream.column),
      y: (row) => height - levels[row],
    };
  }

  // Height of every row above the input; neighbouring folded layers share one strip.
  function rowLevels(open) {
    const levels = [0];
    for (let layer = 0; layer < layers; layer++) {
      const step = !folded.has(layer) ? open : folded.has(layer - 1) ? 0 : foldedHeight;
      levels.push(levels[layer] + step);
    }
    return levels;
  }

  function rowIsShown(row) {
    return row === 0 || row === layers || !folded.has(row - 1) || !folded.has(row);
  }

  // ---- Drawing

  function strokeOf({ width, apart, gathered }) {
    const line = Math.max(widestLine * width, 0.6);
    const dash = Math.min(Math.max(5, 1.2 * line), 12);
    return {
      class: `${apart ? "apart" : ""} ${gathered ? "gathered" : ""}`,
      "stroke-width": line.toFixed(2),
      ...(!gathered && { "stroke-opacity": (0.3 + 0.5 * Math.sqrt(width)).toFixed(2) }),
      ...(apart && signed && { "stroke-dasharray": `${dash} ${0.6 * dash}` }),
    };
  }

  function drawEdges(parent, sheet, drawn, told) {
    const twoSided = drawn.some(({ gathered, apart }) => gathered && apart);
    for (const edge of drawn) {
      const { layer, tail, head, apart, gathered } = edge;
      if (folded.has(layer)) continue;
      const shift = gathered && twoSided ? (apart ? aside : -aside) : 0;
      const at = (column) => sheet.x(column) + (column >= positions.length ? shift : 0);
      const x0 = at(tail), x1 = at(head), y0 = sheet.y(layer), y1 = sheet.y(layer + 1);
      const third = (y1 - y0) / 3;
      const path = element("path", {
        d: `M${x0} ${y0}C${x0} ${y0 + third} ${x1} ${y1 - third} ${x1} ${y1}`,
        ...strokeOf(edge),
      }, parent);
      if (told) tell(path, () => sayEdge(edge));
    }
  }

  function drawLanes(parent, sheet) {
    for (const lane of lanes) {
      const two = lane.amount.some(([first]) => first) && lane.amount.some(([, other]) => other);
      lane.amount.forEach((pair, layer) => pair.forEach((amount, apart) => {
        if (!amount || folded.has(layer)) return;
        const x = sheet.lane(lane) + (two ? (apart ? aside : -aside) : 0);
        const path = element("path", {
          d: `M${x} ${sheet.y(layer)}V${sheet.y(layer + 1)}`,
          ...strokeOf({ width: lane.width[layer][apart], apart, gathered: true }),
        }, parent);
        tell(path, () => sayLane(lane, layer, amount));
      }));
      if (lane.column !== null) continue;
      const at = { class: "row", x: sheet.lane(lane), "text-anchor": "middle" };
      write(lane.name, { ...at, y: sheet.labels + 14 }, parent);
      lane.numbers.forEach((number, row) => write(
        number, { ...at, class: "amount", y: sheet.labels + 32 + 16 * row }, parent));
    }
  }

  function tell(path, words) {
    path.addEventListener("mouseenter", () => pinned || words());
    path.addEventListener("mouseleave", () => pinned || sayHint());
  }

  function drawNodes(svg, sheet) {
    const most = nodeFlow.reduce((largest, amount) => Math.max(largest, Math.abs(amount)), Number.MIN_VALUE);
    for (let row = 0; row <= layers; row++) {
      if (!rowIsShown(row)) continue;
      for (let column = 0; column < columns; column++) {
        const amount = nodeFlow[row * columns + column], share = Math.abs(amount) / most;
        const at = { cx: sheet.x(column), cy: sheet.y(row) };
        const size = share ? 2 + 7 * Math.sqrt(share) : 1.2;
        if (amount < 0) drawDiamond(svg, at, size);
        else {
          const inside = !sourceSide || column >= positions.length || sourceSide[row][column];
          const side = share === 0 ? "idle" : inside ? "" : "sink-side";
          element("circle", { ...at, r: size.toFixed(2), class: `node ${side}` }, svg);
        }
        const hit = element("circle", {
          ...at, r: 9, class: "hit", tabindex: -1, role: "button", "data-node": `${row} ${column}`,
          "aria-label": `${tokens[column]}, ${row ? `layer ${row}` : "input"}: ${withSign(amount)}`,
        }, svg);
        react(hit, svg, sheet, row, column);
      }
    }
  }

  function drawDiamond(svg, { cx, cy }, size) {
    const half = size.toFixed(2);
    const d = `M${cx} ${cy}m0 ${-half}l${half} ${half}l${-half} ${half}l${-half} ${-half}z`;
    element("path", { d, class: "node negative" }, svg);
  }

  function drawTokens(svg, sheet, labels) {
    labels.forEach((label, column) => {
      const kind = (sent(column) < 0 ? "negative " : "") + (column < positions.length ? "" : "others");
      const token = element("g", {
        class: `token ${kind}`, tabindex: 0, role: "button", "data-token": column,
        "aria-label": `${tokens[column]}: ${withSign(sent(column))}`,
        transform: `translate(${sheet.x(column)} ${sheet.labels})${sheet.turned ? "rotate(-90)" : ""}`,
      }, svg);
      const long = textWidth([label]) + 8;
      element("rect", {
        x: sheet.turned ? -long : -long / 2, y: sheet.turned ? -8 : 0, rx: 3,
        width: long, height: sheet.turned ? 16 : 20,
        style: `fill-opacity: calc(var(--tint) * ${data.tint[column].toFixed(3)})`,
      }, token);
      write(label, {
        x: sheet.turned ? -4 : 0, y: sheet.turned ? 4 : 14,
        "text-anchor": sheet.turned ? "end" : "middle",
      }, token);
      element("title", {}, token).textContent = tokens[column];
      react(token, svg, sheet, 0, column);
    });
  }

  function drawAmounts(svg, sheet) {
    amounts.forEach(([name, numbers], row) => {
      const y = sheet.amounts(row) + amountFont;
      write(name, { class: "row", x: sheet.left - 8, y, "text-anchor": "end" }, svg);
      numbers.forEach((number, column) => {
        const x = sheet.x(column) + (sheet.turned ? 4 : 0);
        const turn = sheet.turned ? { transform: `rotate(-90 ${x} ${y - amountFont})` } : {};
        write(number, {
          class: "amount", x, y: sheet.turned ? y - amountFont : y, ...turn,
          "text-anchor": sheet.turned ? "end" : "middle",
        }, svg);
      });
    });
  }

  function drawRows(svg, sheet) {
    for (let row = 0; row <= layers; row++) {
      if (!rowIsShown(row)) continue;
      const name = row ? `layer ${row}` : "input";
      write(name, { class: "row", x: sheet.left - 8, y: sheet.y(row) + 4, "text-anchor": "end" }, svg);
    }
    for (let first = 0, last; first < layers; first = last) {
      last = first + 1;
      if (folded.has(first)) while (folded.has(last)) last++;
      drawGap(svg, sheet, first, last);
    }
    if (data.hasGathered) write("gathered", { class: "row", x: sheet.end + 8, y: sheet.y(layers) + 4 }, svg);
  }

  // Layers from first up to last, folded, or one that is open, with its button.
  function drawGap(svg, sheet, first, last) {
    const isFolded = folded.has(first);
    const middle = (sheet.y(first) + sheet.y(last)) / 2;
    const names = last - first > 1 ? `layers ${first + 1} to ${last}` : `layer ${last}`;
    if (isFolded) {
      element("rect", {
        class: "folded", x: sheet.left, y: middle - 7, width: sheet.end - sheet.left, height: 14,
      }, svg);
      write(`${names} folded`, {
        class: "row", x: (sheet.left + sheet.end) / 2, y: middle + 4, "text-anchor": "middle",
      }, svg);
    } else if (data.hasGathered) {
      write(`${(100 * data.gatheredShare[first]).toFixed(0)} %`,
        { class: "row", x: sheet.end + 8, y: middle + 4 }, svg);
    }
    const button = element("g", {
      class: "fold", tabindex: 0, role: "button", "aria-expanded": !isFolded,
      "aria-label": `${isFolded ? "unfold" : "fold"} ${names}`, "data-layer": first,
    }, svg);
    element("circle", { cx: 12, cy: middle, r: 8 }, button);
    write(isFolded ? "+" : "−", { x: 12, y: middle + 4, "text-anchor": "middle" }, button);
    element("title", {}, button).textContent = `${isFolded ? "unfold" : "fold"} ${names}`;
    const toggle = () => {
      for (let layer = first; layer < last; layer++) {
        if (isFolded) folded.delete(layer); else folded.add(layer);
      }
      draw();
      const again = [...main.querySelectorAll(".fold")]
        .findLast((other) => Number(other.dataset.layer) <= first);
      again.focus();
    };
    button.addEventListener("click", toggle);
    onKeys(button, { Enter: toggle, " ": toggle });
  }

  // ---- Following a flow

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
          const at = (layer * columns + head) * columns + tail;
          const amount = flow[at] * share[tail];
          if (amount === 0) continue;
          arrived[head] += amount;
          passed.push([at, amount]);
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
    return places.filter((at) => flow[at] !== 0).map((at) => [at, flow[at]]);
  }

  function trace(row, column) {
    const passed = (signed ? touching : mixed)(row, column)
      .map(([at, amount]) => ({ ...ends(at), amount, apart: amount < 0, gathered: false }));
    const most = new Float64Array(layers);
    for (const { layer, amount } of passed) {
      most[layer] = Math.max(most[layer], Math.abs(amount));
    }
    if (relativeTo === "network") most.fill(Math.max(...most));
    return passed
      .map((edge) => ({ ...edge, width: Math.abs(edge.amount) / most[edge.layer] }))
      .filter(({ width }) => width >= threshold);
  }

  function onKeys(target, actions) {
    target.addEventListener("keydown", (event) => {
      if (!actions[event.key]) return;
      event.preventDefault();
      actions[event.key]();
    });
  }

  function react(target, svg, sheet, row, column) {
    const show = () => showTrace(target, svg, sheet, row, column);
    const toggle = () => {
      const again = pinned === target;
      hideTrace(svg);
      pinned = again ? null : target;
      if (pinned) show();
    };
    const onToken = target.classList.contains("token");
    target.addEventListener("mouseenter", () => pinned || show());
    target.addEventListener("focus", () => pinned || show());
    target.addEventListener("mouseleave", () => pinned || hideTrace(svg));
    target.addEventListener("blur", () => pinned || hideTrace(svg));
    target.addEventListener("click", (event) => { event.stopPropagation(); toggle(); });
    onKeys(target, {
      Enter: toggle,
      " ": toggle,
      Escape: () => { pinned = null; hideTrace(svg); },
      ArrowRight: () => focusNode(onToken ? -1 : row, column + 1),
      ArrowLeft: () => focusNode(onToken ? -1 : row, column - 1),
      ArrowUp: () => focusNode(onToken ? 0 : nextRow(row, 1), column),
      ArrowDown: () => focusNode(onToken ? -1 : nextRow(row, -1), column),
    });
  }

  function nextRow(row, step) {
    let next = row + step;
    while (next > 0 && next < layers && !rowIsShown(next)) next += step;
    return next;
  }

  // Row -1 is that of the tokens.
  function focusNode(row, column) {
    const css = row < 0 ? `[data-token="${column}"]` : `[data-node="${row} ${column}"]`;
    const next = main.querySelector(css);
    if (next) next.focus();
  }

  function showTrace(target, svg, sheet, row, column) {
    hideTrace(svg);
    target.classList.add("active");
    svg.classList.add("tracing");
    drawEdges(svg.querySelector(".trace"), sheet, trace(row, column), false);
    sayNode(row, column);
  }

  function hideTrace(svg) {
    svg.querySelectorAll(".active").forEach((shown) => shown.classList.remove("active"));
    svg.classList.remove("tracing");
    svg.querySelector(".trace").replaceChildren();
    sayHint();
  }

  function draw() {
    pinned = null;
    const labels = tokens.map(shorten), sheet = place(labels);
    const svg = element("svg", {
      width: sheet.width, height: sheet.height, role: "group", "aria-label": document.title,
      class: signed ? "signed" : "",
    });
    drawLanes(element("g", { class: "lanes" }, svg), sheet);
    drawEdges(element("g", { class: "edges" }, svg), sheet, edges, true);
    element("g", { class: "trace" }, svg);
    drawRows(svg, sheet);
    drawNodes(svg, sheet);
    drawTokens(svg, sheet, labels);
    drawAmounts(svg, sheet);
    svg.addEventListener("click", () => { pinned = null; hideTrace(svg); });
    main.replaceChildren(svg);
    foldButton.textContent = folded.size ? "Unfold all layers" : "Fold all layers";
    hideTrace(svg);
  }

  function writeTable() {
    const table = document.createElement("table");
    const heading = table.createTHead().insertRow();
    for (const name of ["token", "position", "score", signed ? "% of the output" : "% of the flow"]) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = name;
      heading.append(cell);
    }
    const body = table.createTBody();
    tokens.forEach((token, column) => {
      const amount = sent(column), share = value ? (100 * amount / value).toPrecision(3) : "";
      const place = column < positions.length ? `${positions[column] + 1}` : "";
      const row = body.insertRow();
      for (const words of [token, place, withSign(amount), minus(share)]) {
        row.insertCell().textContent = words;
      }
    });
    document.getElementById("numbers").append(table);
  }

  foldButton.addEventListener("click", () => {
    if (folded.size) folded.clear();
    else for (let layer = 0; layer < layers; layer++) folded.add(layer);
    draw();
  });
  writeTable();
  draw();
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;  // a phone's address bar comes and goes
    width = window.innerWidth;
    draw();
  });
})();
