// The picture: boxes (buttons that the browser lays out), and the lines between them (one SVG over all of it).
// A new picture is compared with the one shown, by id, and only what is different is touched.

const DENSE = 90;     // pods from which on they are squares
const FEW_LINES = 40; // lines that are drawn without being asked for
const MANY = 60;      // endpoints from which on a Service has a line to each node instead

const fabric = document.getElementById("fabric");
const frame = document.getElementById("picture");
const list = document.getElementById("service-list");
const column = document.getElementById("services");
const main = document.querySelector("main");
const serves = document.getElementById("serves");
const hint = document.getElementById("hint");

export const shown = new Map();   // id → {node, element (a button), outer (what is placed), inside (where boxes go)}
export let byNetns = new Map();   // network namespace → id
let targets = new Map();          // Service → ids of its endpoints
let sources = new Map();          // pod → ids of Services it serves
let racks = new Set();            // networks that nodes stand in
let pointed = "", chosen = "";
const listeners = { choose: () => {}, moved: () => {} };

export function on(what, call) { listeners[what] = call; }

export function text(tag, words, kind = "") {
  const element = document.createElement(tag);
  element.textContent = words;
  if (kind) element.className = kind;
  return element;
}

// --- what is there ------------------------------------------------------------------------------------------------

// Shows a picture; returns what is different from before, as sentences.
export function draw(picture) {
  const first = shown.size === 0;
  const news = [];
  const wanted = new Map(picture.nodes.map((node) => [node.id, node]));
  targets = new Map();
  sources = new Map();
  for (const edge of picture.edges) if (edge.kind === "serves") {
    push(targets, edge.source, edge.target);
    push(sources, edge.target, edge.source);
  }
  for (const [id, one] of shown) if (!wanted.has(id)) {
    one.outer.remove();
    shown.delete(id);
    news.push(`${id} is gone`);
  }
  racks = new Set(picture.nodes.filter((node) => node.kind === "node").map((node) => node.inside));
  const pods = picture.nodes.filter((node) => node.kind === "pod").length;
  frame.classList.toggle("dense", pods > DENSE);
  const places = new Map();   // parent element → elements in order
  for (const node of picture.nodes.sort(inOrder)) {
    const one = shown.get(node.id) ?? made(node, first);
    news.push(...dressed(one, node, first));
    push(places, parent(node), one.outer);
  }
  for (const [place, inner] of places) arrange(place, inner);
  byNetns = new Map();
  for (const node of picture.nodes) if (node.netns && !byNetns.has(node.netns)) byNetns.set(node.netns, node.id);
  roving();
  redraw();
  return news;
}

// Boxes before what is in them; then the default namespace, then names as people count: node2 before node10.
const KINDS = ["router", "network", "node", "host", "pod", "service"];
const collator = new Intl.Collator("en", { numeric: true });
function inOrder(one, other) {
  return KINDS.indexOf(one.kind) - KINDS.indexOf(other.kind)
    || one.name.includes("/") - other.name.includes("/") || collator.compare(one.name, other.name);
}

function push(map, key, value) {
  const known = map.get(key);
  if (known) known.push(value); else map.set(key, [value]);
}

function made(node, first) {
  const element = text("button", "", `box ${node.kind}`);
  element.type = "button";
  element.tabIndex = -1;
  element.dataset.id = node.id;
  element.append(text("b", ""), text("small", ""));
  const one = { node: null, element, outer: element, inside: null };
  if (node.kind === "network" || node.kind === "node") {
    element.className = "box head";
    one.outer = text("div", "", node.kind);
    one.inside = text("div", "", node.kind === "node" ? "pods" : "inside");
    one.outer.append(element, one.inside);
  } else if (!first) element.classList.add("new");
  shown.set(node.id, one);
  return one;
}

function dressed(one, node, first) {
  const before = one.node;
  one.node = node;
  if (before && before.name === node.name && before.detail === node.detail && before.ready === node.ready) return [];
  one.element.querySelector("b").textContent = node.name;
  one.element.querySelector("small").textContent = `${node.detail}${trouble(node)}`;
  one.element.classList.toggle("unready", !node.ready);
  one.element.setAttribute("aria-label", said(node));
  if (first) return [];
  if (!before) return [`${node.id} is there${node.inside ? ` on ${node.inside}` : ""}${trouble(node)}`];
  return before.ready === node.ready ? [] : [node.kind === "service" ? `${node.id} has ${node.ready ? "endpoints" : "no endpoints any more"}`
    : `${node.id} is ${node.ready ? "ready" : "not ready any more"}`];
}

export function said(node) {
  return `${node.id.replace("pod/default/", "pod/").replace("svc/default/", "svc/")}  ${node.detail}`
    + (node.kind === "pod" ? ` on ${node.inside}` : "") + trouble(node);
}

function trouble(node) { return node.ready ? "" : node.kind === "service" ? ", no endpoints" : ", not ready"; }

function parent(node) {
  if (node.kind === "service") return list;
  if (node.inside && shown.has(node.inside)) return shown.get(node.inside).inside;
  return tier(node);
}

// Networks that hold clients above the router, those with nodes below.
function tier(node) {
  if (fabric.childElementCount === 0) for (let row = 0; row < 3; row += 1) fabric.append(text("div", "", "tier"));
  if (node.kind === "router") return fabric.children[1];
  return fabric.children[racks.has(node.id) ? 2 : 0];
}

// Puts elements into a place in this order, moving only those that stand elsewhere.
function arrange(place, inner) {
  let next = place.firstElementChild;
  for (const element of inner) {
    if (element === next) next = next.nextElementSibling;
    else place.insertBefore(element, next);
  }
}

export function mark(kind, counts) {   // a small badge in the corner of nodes, and a frame around the rest: Map(id → words)
  for (const [id, one] of shown) {
    one.element.classList.toggle(`has-${kind}`, counts.has(id));
    if (!one.inside) continue;
    let badge = one.element.querySelector(`.mark.${kind}`);
    const words = counts.get(id);
    if (words && !badge) one.element.append(badge = text("span", "", `mark ${kind}`));
    if (words) badge.textContent = words; else badge?.remove();
  }
}

export function endpoints(id) { return targets.get(id) ?? []; }
export function services(id) { return sources.get(id) ?? []; }

// --- lines --------------------------------------------------------------------------------------------------------

// The middle of a box, in the coordinates of the SVG; a box that is scrolled out stands at the edge of its column.
export function middle(id) {
  const one = shown.get(id);
  if (!one) return null;
  const box = one.element.getBoundingClientRect();
  const around = main.getBoundingClientRect();
  return { x: box.x + box.width / 2 - around.x, y: box.y + box.height / 2 - around.y };
}

function curve(from, to, around) {
  const clamp = (y, box) => Math.min(Math.max(y, box.y), box.bottom);
  const y1 = clamp(from.y + from.height / 2, column.getBoundingClientRect()) - around.y;
  const y2 = to.y + to.height / 2 - around.y;
  const x1 = from.right - around.x, x2 = to.x - around.x;
  const bend = Math.min(90, (x2 - x1) / 2);
  return `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
}

let drawing = 0;
export function redraw() { drawing ||= requestAnimationFrame(() => { drawing = 0; lines(); listeners.moved(); }); }

function lines() {
  const active = wanted();
  const some = active.length ? active : all() <= FEW_LINES ? [...targets.keys()] : [];
  const around = main.getBoundingClientRect(), view = frame.getBoundingClientRect();
  const lit = new Set();
  const paths = some.map((id) => {
    const from = shown.get(id)?.element.getBoundingClientRect();
    const served = from ? (targets.get(id) ?? []).filter((target) => shown.has(target)) : [];
    if (active.length) for (const target of served) lit.add(shown.get(target).element);
    let d = "";
    for (const end of served.length > MANY ? nodesOf(served) : served) {
      const to = shown.get(end).element.getBoundingClientRect();
      if (to.bottom > view.y && to.y < view.bottom) d += curve(from, to, around);
    }
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", d);
    if (active.length) path.setAttribute("class", "lit");
    return path;
  });
  serves.replaceChildren(...paths);
  for (const one of fabric.querySelectorAll(".lit")) if (!lit.has(one)) one.classList.remove("lit");
  for (const one of lit) one.classList.add("lit");
}

function nodesOf(ids) { return new Set(ids.map((id) => shown.get(id).node.inside)); }

function all() { let sum = 0; for (const ids of targets.values()) sum += ids.length; return sum; }

// The Services whose lines are wanted: the one pointed at, or those that the chosen pod serves.
function wanted() {
  for (const id of [pointed, chosen]) {
    if (targets.has(id)) return [id];
    if (sources.has(id) && id === chosen) return sources.get(id);
  }
  return [];
}

// --- pointer and keyboard -----------------------------------------------------------------------------------------

export function choose(id) {
  chosen = id;
  redraw();
}

export function say(words) { hint.textContent = words; }

function point(id) {
  if (id === pointed) return;
  pointed = id;
  const one = shown.get(id);
  say(one ? said(one.node) : "");
  redraw();
}

function boxOf(event) { return event.target.closest?.(".box")?.dataset.id ?? ""; }

for (const place of [frame, column]) {
  place.addEventListener("pointerover", (event) => point(boxOf(event)));
  place.addEventListener("pointerleave", () => point(""));
  place.addEventListener("focusin", (event) => { const id = boxOf(event); if (id) { point(id); roving(id); } });
  place.addEventListener("click", (event) => { const id = boxOf(event); if (id) listeners.choose(id); });
  place.addEventListener("scroll", redraw, { passive: true });
  place.addEventListener("keydown", arrows);
}
new ResizeObserver(redraw).observe(frame);
new ResizeObserver(redraw).observe(fabric);

// One stop of the Tab key for the Services and one for the picture; arrows go from box to box.
const stops = new Map();
function roving(id = "") {
  for (const place of [list, fabric]) {
    const old = stops.get(place);
    const own = id && shown.has(id) && place.contains(shown.get(id).element) ? shown.get(id).element : null;
    const stop = own ?? (old?.isConnected ? old : place.querySelector(".box"));
    if (old && old !== stop) old.tabIndex = -1;
    if (stop) { stop.tabIndex = 0; stops.set(place, stop); }
  }
}

const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function arrows(event) {
  const way = WAYS[event.key];
  const from = event.target.closest?.(".box");
  if (!way || !from || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const next = nearest(from, way);
  if (next) { next.focus({ preventScroll: true }); next.scrollIntoView({ block: "nearest", inline: "nearest" }); }
}

// The next box in that direction: the distance along it counts once, the one across it twice.
function nearest(from, [dx, dy]) {
  const here = from.getBoundingClientRect();
  let best = null, least = Infinity;
  for (const { element } of shown.values()) {
    if (element === from) continue;
    const there = element.getBoundingClientRect();
    const x = (there.x + there.right - here.x - here.right) / 2, y = (there.y + there.bottom - here.y - here.bottom) / 2;
    const along = x * dx + y * dy, across = Math.abs(x * dy) + Math.abs(y * dx);
    const clear = dx ? dx * (dx > 0 ? there.x - here.right : there.right - here.x) : dy * (dy > 0 ? there.y - here.bottom : there.bottom - here.y);
    if (along <= 1 || clear < -8) continue;
    const far = along + 2 * across;
    if (far < least) { least = far; best = element; }
  }
  return best;
}

export function find(words) {
  const wanted = words.trim().toLowerCase();
  let first = "";
  let found = 0;
  main.classList.toggle("finding", wanted !== "");
  for (const [id, { node, element }] of shown) {
    const hit = wanted !== "" && `${node.id} ${node.name} ${node.detail}`.toLowerCase().includes(wanted);
    element.classList.toggle("found", hit);
    if (hit) { found += 1; first ||= id; }
  }
  say(wanted ? `${found} found` : "");
  return first;
}
