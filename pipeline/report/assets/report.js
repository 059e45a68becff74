// All that a page does beside being read: find as one types, and one photo large. Pages can be read
// without it. It asks for nothing, and puts text into the page as text alone.
"use strict";

// -- Find: of the [data-item] of a page those are shown that have all typed words in their text.

function textOf(item) {
  item.found ??= item.textContent.toLowerCase();
  return item.found;
}

function find(input) {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  const area = document.getElementById(input.dataset.filter);
  const items = area.querySelectorAll("[data-item]");
  let n = 0;
  for (const item of items) {
    const text = textOf(item);
    item.hidden = !words.every((word) => text.includes(word));
    n += !item.hidden;
  }
  for (const part of area.querySelectorAll("[data-part]")) {
    part.hidden = !part.querySelector("[data-item]:not([hidden])");
  }
  const count = input.closest(".filter").querySelector(".count");
  count.textContent = words.length ? `${n.toLocaleString("en")} of ${items.length.toLocaleString("en")}` : "";
}

for (const input of document.querySelectorAll("[data-filter]")) {
  input.closest(".filter").hidden = false;
  input.addEventListener("input", () => find(input));
  if (input.value) find(input); // as the browser kept it on the way back
}

// -- One photo, large: from its tile, with all its classes. Arrow keys turn to the next.

const look = document.getElementById("look");
let at = null;

function show(tile) {
  at = tile;
  const from = tile.querySelector(".open img");
  const figure = look.querySelector("figure"), image = figure.querySelector("img");
  figure.hidden = !from;
  if (from) {
    image.src = from.src;
    image.alt = from.alt;
  }
  look.querySelector("h2").textContent = tile.querySelector(".line").textContent.trim();
  const facts = tile.querySelector(".facts");
  look.querySelector(".at").textContent =
    tile.querySelector(".path").textContent + (facts ? ` · ${facts.textContent}` : "");
  look.querySelector(".all").replaceChildren(
    ...[...tile.querySelector(".peek").children].map((part) => part.cloneNode(true)),
  );
  for (const [name, step] of [[".before", -1], [".after", 1]]) {
    look.querySelector(name).disabled = !beside(tile, step);
  }
  if (!look.open) look.showModal();
}

function beside(tile, step) {
  const tiles = [...document.querySelectorAll(".photo:not([hidden])")].filter((each) => each.offsetParent);
  return tiles[tiles.indexOf(tile) + step];
}

function turn(step) {
  const tile = beside(at, step);
  if (tile) show(tile);
}

document.addEventListener("click", (event) => {
  const open = event.target.closest(".photo .open");
  if (open && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    show(open.closest(".photo"));
  } else if (event.target === look) {
    look.close(); // beside the photo
  }
});
look.querySelector(".before").addEventListener("click", () => turn(-1));
look.querySelector(".after").addEventListener("click", () => turn(1));
look.addEventListener("close", () => at && at.querySelector(".open").focus());

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (look.open) {
    if (event.key === "ArrowLeft") turn(-1);
    if (event.key === "ArrowRight") turn(1);
    return;
  }
  const input = document.querySelector("[data-filter]");
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
  if (event.key === "/" && input && !typing) {
    event.preventDefault();
    input.focus();
  } else if (event.key === "Escape" && event.target === input) {
    input.value = "";
    find(input);
  }
});
