"use strict";
// What all pages of text share: a tip at the token under the pointer or in focus, and
// arrow keys that go from token to token.
const page = (() => {
  const tip = document.getElementById("tip");
  let pointed = null;

  function showTip(token, ...words) {
    hideTip();
    const described = token.querySelector("input") ?? token;
    described.setAttribute("aria-describedby", "tip");
    tip.replaceChildren(...words);
    tip.hidden = false;
    pointed = token;
    placeTip();
  }

  function placeTip() {
    if (tip.hidden) return;
    const box = pointed.getClientRects()[0] ?? pointed.getBoundingClientRect();
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    const above = box.top - tip.offsetHeight - 6;
    tip.style.left = `${Math.max(8, Math.min(box.left, room))}px`;
    tip.style.top = `${above > 4 ? above : box.bottom + 6}px`;
  }

  function hideTip() {
    document.querySelector("[aria-describedby=tip]")?.removeAttribute("aria-describedby");
    tip.hidden = true;
  }

  // Show what is said of a token of this part of the page, under the pointer or in focus.
  function tips(part, wordsOf) {
    const show = (event) => {
      const token = event.target.closest(".token");
      if (token) showTip(token, ...wordsOf(token));
      else hideTip();
    };
    part.addEventListener("pointerover", show);
    part.addEventListener("focusin", show);
    part.addEventListener("pointerleave", hideTip);
    part.addEventListener("focusout", hideTip);
  }

  // Arrow keys: the first token of the unit before and behind, the line above and below.
  function walk(words, unitOf = (token) => token) {
    words.addEventListener("focusin", (event) => {
      for (const token of words.querySelectorAll("[tabindex='0']")) token.tabIndex = -1;
      event.target.tabIndex = 0;
    });
    words.addEventListener("keydown", (event) => {
      const tokens = [...words.children], here = tokens.indexOf(document.activeElement);
      const firsts = tokens.filter(
        (token, place) => !place || unitOf(token) !== unitOf(tokens[place - 1]));
      const steps = {
        ArrowRight: () => firsts.find((token) => tokens.indexOf(token) > here),
        ArrowLeft: () => firsts.findLast((token) => tokens.indexOf(token) < here),
        ArrowDown: () => inLine(tokens, here, 1),
        ArrowUp: () => inLine(tokens, here, -1),
        Home: () => tokens[0],
        End: () => firsts.at(-1),
      };
      const step = steps[event.key];
      if (here < 0 || !step || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      step()?.focus();
    });
  }

  // The token of the next line that is nearest to the one here.
  function inLine(tokens, here, direction) {
    const boxes = tokens.map((token) => token.getClientRects()[0] ?? token.getBoundingClientRect());
    const { top, left, height } = boxes[here];
    const beyond = boxes.map((box) => (box.top - top) * direction).map((far) => far > height / 2 ? far : Infinity);
    const nearest = Math.min(...beyond);
    let best;
    boxes.forEach((box, place) => {
      if (beyond[place] > nearest + height / 2) return;
      if (best === undefined || Math.abs(box.left - left) < Math.abs(boxes[best].left - left)) best = place;
    });
    return nearest === Infinity ? undefined : tokens[best];
  }

  document.addEventListener("keydown", (event) => event.key === "Escape" && hideTip());
  // Of the page and of a part of it, which does not bubble.
  document.addEventListener("scroll", placeTip, { passive: true, capture: true });
  return { tip, tips, showTip, hideTip, walk };
})();
