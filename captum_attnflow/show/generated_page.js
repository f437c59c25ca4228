// Colours texts by the scores that Python gathered; see generated.py for the fields.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const announced = find("announced");
  const units = find("units"), scale = find("scale");
  const named = 5;  // the most tokens on a side of a sentence
  const longest = 48;  // characters of a token, or of a sentence, that a sentence quotes
  const unitNames = {
    token: "tokens", word: "words", sentence: "sentences", line: "lines", span: "given spans",
  };
  const leftOutNames = {
    first: "the first token", "read-out": "the token in front", system: "system message",
    template: "chat template",
  };
  const texts = data.texts.map(prepare);
  let active = texts[0];

  function prepare(given, number) {
    const scores = floats(given.scores), columns = given.pieces.length;
    const rows = given.spans.map(([start, stop], row) => ({
      start, stop, scores: scores.subarray(row * columns, (row + 1) * columns),
    }));
    const n = given.probabilities.length;
    const hasAnswer = given.hasRowPerToken && n > 1;
    if (hasAnswer) rows.push({ start: 0, stop: n, summed: rows.slice() });
    const chosen = hasAnswer ? rows.length - 1 : 0, isSigned = scores.some((score) => score < 0);
    return { ...given, number, rows, chosen, isSigned, tokens: [] };
  }

  function floats(base64) {
    const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return Float32Array.from(
      { length: bytes.length / 4 }, (_, place) => view.getFloat32(4 * place, true));
  }

  // What is shown: sums over units, of the tokens that are not left out.

  function leftOut() {
    const boxes = document.querySelectorAll("#left-out input:checked");
    return new Set([...boxes].map((box) => box.value));
  }

  function isAbsent(text, token, out) {
    return out.has(text.parts[token]) || (token === 0 && out.has("first"));
  }

  function isHidden(text, { start, stop }, token, out) {
    const readOut = text.given - 1;
    return isAbsent(text, token, out)
      || (out.has("read-out") && token >= readOut + start && token < readOut + stop);
  }

  // Sums of a row by unit, NaN where no score is; and what is hidden of all.
  function measure(text, row) {
    const out = leftOut(), sums = new Float64Array(text.firsts.length).fill(NaN);
    const isScored = new Uint8Array(text.pieces.length);
    let hidden = 0, all = 0;
    for (const part of row.summed ?? [row]) {
      for (let token = 0; token < text.given + part.stop - 1; token++) {
        const score = part.scores[token], unit = text.unitOf[token];
        if (!Number.isFinite(score)) continue;
        all += Math.abs(score);
        if (isHidden(text, part, token, out)) {
          hidden += Math.abs(score);
          continue;
        }
        isScored[token] = 1;
        sums[unit] = (sums[unit] || 0) + score;
      }
    }
    const sizes = Array.from(sums, (sum) => Math.abs(sum) || 0);
    const total = sizes.reduce((sum, size) => sum + size, 0);
    const largest = sizes.reduce((most, size) => Math.max(most, size), 0);
    return { sums, isScored, total, largest, hidden: all ? hidden / all : 0 };
  }

  // Of another size than each of its rows, their sum has a scale of its own.
  function largestOfAll(text) {
    const most = text.rows.filter((row) => !row.summed).map((row) => measure(text, row).largest);
    return most.reduce((a, b) => Math.max(a, b), 0);
  }

  function chooseUnits(text) {
    const firsts = text.firsts = text.starts[units.value] ?? text.pieces.map((_, token) => token);
    text.unitOf = new Int32Array(text.pieces.length);
    firsts.forEach((first, unit) => text.unitOf.fill(unit, first));
  }

  // The tokens that the unit's sum holds in what is chosen: not those that come after, are
  // explained, or are left out.
  function summedTokens(text, unit) {
    const { isScored } = text.measured, end = text.firsts[unit + 1] ?? text.pieces.length;
    const found = [];
    for (let token = text.firsts[unit]; token < end; token++) {
      if (isScored[token]) found.push(token);
    }
    return found;
  }

  function unitText(text, unit) {
    return readable(summedTokens(text, unit).map((token) => text.pieces[token]).join(""));
  }

  // As the matrix writes it.
  function readable(piece) {
    const trimmed = piece.replace(/^ +| +$/g, "");
    return trimmed.replaceAll("\n", "⏎").replaceAll("\t", "⇥") || (piece ? "␣" : "…");
  }

  // Both ends tell sentences apart.
  function shortened(words) {
    const characters = [...words], half = longest / 2;
    if (characters.length <= longest) return words;
    return `${characters.slice(0, half).join("").trimEnd()} … ${characters.slice(-half).join("").trimStart()}`;
  }

  function perCent(share) {
    const percent = 100 * Math.abs(share);
    const written = percent >= 9.95 ? percent.toFixed(0) : Number(percent.toPrecision(2));
    return `${written}\u00a0%`;  // no line breaks in front of the sign
  }

  function withSign(score) {
    return (score > 0 ? "+" : "") + score.toPrecision(3).replaceAll("-", "−");
  }

  // Sentences. A list of text and nodes: tokens keep their direction to themselves.

  function quoted(text) {
    const token = element("bdi", {}, shortened(text));
    return ["“", token, "”"];
  }

  function rowName(text, row) {
    const n = text.probabilities.length;
    if (row.summed) return ["The whole answer of ", String(n), " tokens"];
    const words = text.pieces.slice(text.given + row.start, text.given + row.stop).join("");
    const isOne = row.stop === row.start + 1;
    const where = isOne ? `token ${row.stop}` : `tokens ${row.start + 1} to ${row.stop}`;
    const odds = isOne ? chance(text, row.start) : "";
    const other = isOne && text.against[row.start];
    const rather = other ? [" rather than ", ...quoted(other)] : [];
    return [...quoted(readable(words)), ...rather, ` (${where} of ${n}${odds})`];
  }

  function chance(text, step) {
    const probability = text.probabilities[step];
    return probability === null ? "" : `, probability ${perCent(probability)}`;
  }

  function sentence(text) {
    const row = text.rows[text.chosen], { sums, total } = text.measured;
    const units = [...sums.keys()].filter((unit) => sums[unit]);
    units.sort((a, b) => Math.abs(sums[b]) - Math.abs(sums[a]));
    const sides = [[" For it: ", 1], [" Against it: ", -1]].map(([words, sign]) => {
      const strongest = units.filter((unit) => sums[unit] * sign > 0).slice(0, named);
      const each = strongest.flatMap((unit, rank) => [
        rank ? ", " : "", ...quoted(unitText(text, unit)), ...whichOfSeveral(text, unit),
        ` ${perCent(sums[unit] / total)}`]);
      return each.length ? [words, ...each, "."] : [];
    });
    const seen = sums.some((sum) => !Number.isNaN(sum));
    const none = units.length ? "" : seen ? " All scores are 0." : " No score is shown.";
    const less = leftOut().size ? ` Left out: ${perCent(text.measured.hidden)} of its scores.` : "";
    return [...rowName(text, row), ".", ...sides.flat(), none, less];
  }

  // What tells a unit from those of the same text, as which_of_several in Python does: its
  // neighbours, or its number among them.
  function whichOfSeveral(text, unit) {
    const { sums } = text.measured;
    const shown = [...sums.keys()].filter((other) => !Number.isNaN(sums[other]));
    const names = shown.map((other) => unitText(text, other)), name = unitText(text, unit);
    const alike = [...names.keys()].filter((at) => names[at] === name);
    if (alike.length === 1) return [];
    const contexts = alike.map((at) => names.slice(Math.max(at - 1, 0), at + 2));
    const number = alike.indexOf(shown.indexOf(unit)), own = JSON.stringify(contexts[number]);
    const isOnlyOne = contexts.filter((other) => JSON.stringify(other) === own).length === 1;
    const words = isOnlyOne ? contexts[number].map(shortened).join(" ")
      : `${ordinal(number + 1)} of ${alike.length}`;
    return [" (", element("bdi", {}, words), ")"];
  }

  function ordinal(number) {
    const isTeen = [11, 12, 13].includes(number % 100);
    return number + (isTeen ? "th" : { 1: "st", 2: "nd", 3: "rd" }[number % 10] ?? "th");
  }

  function tipOf(text, token) {
    const unit = text.unitOf[token], { sums, isScored, total } = text.measured;
    const row = text.rows[text.chosen], out = leftOut(), step = token - text.given;
    const isGenerated = step >= 0;
    const odds = isGenerated ? chance(text, step) : "";
    if (isScored[token]) {
      const side = sums[unit] < 0 ? "against" : "for";
      const share = total ? `, ${perCent(sums[unit] / total)} ${sums[unit] ? side : ""}` : "";
      return [...quoted(unitText(text, unit)), `: ${withSign(sums[unit])}${share.trimEnd()}${odds}`];
    }
    const why = !row ? "" : row.summed && step === row.stop - 1 ? ": the last token"
      : step >= row.stop ? ": comes after" : step >= row.start && !row.summed ? ": explained here"
      : isAbsent(text, token, out) || out.size ? ": left out" : ": its score is not finite";
    return [...quoted(readable(text.pieces[token])), `${why}${odds}`];
  }

  // What the page is made of.

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, given] of Object.entries(attributes)) made.setAttribute(key, given);
    made.append(...children);
    return made;
  }

  // A line feed is seen, and breaks the line.
  function written(piece) {
    const shown = piece === "" ? "…" : piece;
    return shown.split("\n").flatMap((line, number) => number
      ? [element("span", { class: "break", "aria-hidden": "true" }, "⏎"), "\n", line] : [line]);
  }

  function build(text) {
    const several = texts.length > 1, heading = several ? "h3" : "h2";
    const section = element("section", { class: "text", id: `prompt-${text.number + 1}` });
    if (several) section.append(element("h2", {}, `Prompt ${text.number + 1} of ${texts.length}`));
    section.append(element("p", { class: "caption" }, text.caption));
    const prompt = element("div", { class: "prompt" }, element(heading, {}, "Prompt"),
      wordsOf(text, 0, text.given, "Prompt"));
    text.reading = element("p", { class: "reading" });
    text.table = element("details", {}, element("summary", {}, "Scores as a table"));
    text.table.addEventListener("toggle", () => fillTable(text));
    const answer = element("div", { class: "answer" }, text.reading, choices(text));
    section.append(element("div", { class: "beside" }, prompt, answer), text.table);
    find("texts").append(section);
    react(text, section);
  }

  function choices(text) {
    const n = text.pieces.length, group = element("fieldset");
    if (!text.rows.length) {
      const nothing = n > text.given ? "No generated token was explained." : "Nothing was generated.";
      group.append(element("p", { class: "note" }, nothing));
    } else {
      const what = text.hasRowPerToken ? "a generated token" : "a span of what was generated";
      group.append(element("legend", {}, `Choose ${what}`));
    }
    if (n > text.given) group.append(wordsOf(text, text.given, n, "Generated text"));
    const rows = element("div", { class: "rows" });
    text.rows.forEach((row, number) => {
      if (text.hasRowPerToken && !row.summed) return;
      rows.append(element("label", { class: "row" }, radio(text, number), rowLabel(text, row)));
    });
    group.append(rows);
    return group;
  }

  function rowLabel(text, { start, stop, summed }) {
    if (summed) return " whole answer";
    const words = text.pieces.slice(text.given + start, text.given + stop).join("");
    return element("span", {}, " ", ...quoted(readable(words)));
  }

  function radio(text, row) {
    const made = element("input", {
      type: "radio", name: `row-${text.number}`, value: row, autocomplete: "off",
    });
    made.checked = row === text.chosen;
    return made;
  }

  function wordsOf(text, start, stop, label) {
    const isChosenFrom = text.hasRowPerToken && start >= text.given;
    const words = element("div", { class: "words", dir: "auto" });
    if (!isChosenFrom) {
      words.setAttribute("role", "group");
      words.setAttribute("aria-label", `${label}: arrow keys go from token to token`);
    }
    for (let token = start; token < stop; token++) {
      const kind = `token ${text.parts[token]}`;
      const made = element(isChosenFrom ? "label" : "span", { class: kind, "data-token": token });
      if (isChosenFrom) {
        const input = radio(text, token - text.given);
        input.setAttribute("aria-label", readable(text.pieces[token]));
        made.append(input);
      } else made.tabIndex = token === start ? 0 : -1;
      // The space in front is no part of what is coloured, and lines break at it.
      const [, space, rest] = /^( *)(.*)$/s.exec(text.pieces[token]);
      made.append(...written(rest || space));
      words.append(rest ? space : "", made);
      text.tokens.push(made);
    }
    return words;
  }

  function paint(text) {
    const row = text.rows[text.chosen];
    if (!row) {
      text.measured = { sums: new Float64Array(0), isScored: [], total: 0 };
      return;
    }
    const measured = text.measured = measure(text, row), { sums, isScored } = measured;
    const isOfAll = scale.value === "matrix" && !row.summed;
    const largest = isOfAll ? largestOfAll(text) : measured.largest;
    text.tokens.forEach((made, token) => {
      const share = isScored[token] && largest ? sums[text.unitOf[token]] / largest : 0;
      const step = token - text.given;
      made.style.setProperty("--share", Math.abs(share).toFixed(3));
      made.classList.toggle("for", share > 0);
      made.classList.toggle("against", share < 0);
      made.classList.toggle("explained", !row.summed && step >= row.start && step < row.stop);
      made.classList.toggle("later", step >= row.stop);
      made.classList.toggle("left-out", !isScored[token] && step < row.start);
    });
    text.reading.replaceChildren(...sentence(text));
    fillTable(text);
  }

  function fillTable(text) {
    text.table.querySelector(".scrolled")?.remove();
    if (!text.table.open || !text.rows.length) return;
    const { sums, total } = text.measured;
    const shown = [...sums.keys()].filter((unit) => !Number.isNaN(sums[unit]));
    shown.sort((a, b) => Math.abs(sums[b]) - Math.abs(sums[a]));
    const table = element("table", {}, tableRow("th", [
      unitNames[units.value].replace(/s$/, ""), "token number", "part", "score", "share"]));
    for (const unit of shown) {
      const [first] = summedTokens(text, unit), sign = sums[unit] < 0 ? "−" : "";
      table.append(tableRow("td", [unitText(text, unit), String(first + 1), text.parts[first],
        withSign(sums[unit]), `${sign}${perCent(total ? sums[unit] / total : 0)}`]));
    }
    text.table.append(element("div", { class: "scrolled" }, table));
  }

  function tableRow(kind, cells) {
    const scope = kind === "th" ? { scope: "col" } : {};
    return element("tr", {}, ...cells.map((cell) => element(kind, scope, element("bdi", {}, cell))));
  }

  // What a reader does.

  function react(text, section) {
    section.addEventListener("change", (event) => {
      active = text;
      text.chosen = Number(event.target.value);
      paint(text);
      say(text);
      const token = event.target.closest(".token");
      if (token && !page.tip.hidden) {
        page.showTip(token, ...tipOf(text, Number(token.dataset.token)));
      }
    });
    page.tips(section, (token) => tipOf(text, Number(token.dataset.token)));
    for (const words of section.querySelectorAll(".words[role=group]")) {
      page.walk(words, (token) => unitAt(text, token));
    }
  }

  function say(text) {
    announced.textContent = text.reading.textContent;
  }

  function unitAt(text, token) {
    return text.unitOf[Number(token.dataset.token)];
  }

  function offerControls() {
    for (const [unit, name] of Object.entries(unitNames)) {
      if (unit !== "span" || texts.some((text) => text.starts.span)) units.add(new Option(name, unit));
    }
    units.value = data.units;
    scale.value = data.scale;
    for (const [kind, name] of Object.entries(leftOutNames)) {
      const isPart = kind === "system" || kind === "template";
      if (isPart && !texts.some((text) => text.parts.includes(kind))) continue;
      const box = element("input", { type: "checkbox", value: kind, autocomplete: "off" });
      box.checked = data.leftOut.includes(kind);
      find("left-out").append(element("label", {}, box, ` ${name}`));
    }
    find("controls").addEventListener("change", () => {
      texts.forEach(chooseUnits);
      texts.forEach(paint);
      page.hideTip();
      say(active);
    });
    find("controls").addEventListener("submit", (event) => event.preventDefault());
  }

  function explainColours() {
    const sample = (kind, words) => {
      const made = element("i", { class: kind }, words);
      made.style.setProperty("--share", "0.8");
      return made;
    };
    const samples = [sample("for", "for it")];
    if (texts.some((text) => text.isSigned)) samples.push(sample("against", "against it"));
    document.querySelector(".legend").append(...samples, "the deeper, the larger its score");
  }

  function offerPrompts() {
    if (texts.length < 2) return;
    const links = texts.map((text) => {
      const asked = text.pieces.filter((_, token) => text.parts[token] === "prompt");
      const words = readable(asked.join(""));
      const name = element("bdi", {}, shortened(words));
      return element("a", { href: `#prompt-${text.number + 1}` }, `${text.number + 1}. `, name);
    });
    find("prompts").append(...links);
    find("prompts").hidden = false;
  }

  offerControls();
  explainColours();
  offerPrompts();
  for (const text of texts) {
    chooseUnits(text);
    build(text);
    paint(text);
  }
})();
