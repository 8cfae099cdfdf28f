// The page: what comes from the feed goes into the picture and the panels; what is clicked becomes a trace.
// Everything shown is set as text, never as markup.

import { choose, draw, endpoints, find, mark, on, say, services, shown, text } from "/picture.js";
import { ask, forget, pause, place, wire } from "/way.js";

const $ = (id) => document.getElementById(id);
const KEPT = 200;   // lines of what happened
let health = null;

// --- the feed -----------------------------------------------------------------------------------------------------

let stream = null;
function listen() {
  if (stream || document.hidden) return;
  stream = new EventSource("/feed");
  const take = (name, call) => stream.addEventListener(name, (event) => call(JSON.parse(event.data)));
  take("there", there);
  take("picture", (picture) => { happened(draw(picture)); ends(); counts(); marks(); });
  take("health", (found) => { health = found; state(); counts(); drift(); marks(); });
  take("events", events);
  take("faults", broken);
  stream.onerror = () => badge("no connection: nsnet ui has ended, or the machine sleeps", "bad");
  stream.onopen = () => state();
}

// A page that nobody sees needs no look at the kernel.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) { listen(); return; }
  stream?.close();
  stream = null;
});

function there(found) {
  document.title = `${found.cluster} · nsnet`;
  $("cluster").textContent = found.cluster;
  if (found.there) { state(); return; }
  badge(found.why, "bad");
  health = null;
}

function badge(words, kind) {
  const box = $("health");
  if (box.textContent !== words) box.textContent = words;
  box.className = `badge ${kind}`;
}

function state() {
  if (!health) { badge("looking at the kernel", ""); return; }
  badge(health.healthy ? "healthy" : trouble(), health.healthy ? "good" : "bad");
}

function trouble() {
  if (health.controller?.error) return health.controller.error;
  if (!health.controller) return "no controller runs";
  return health.drifted ? "the kernel is not as wanted" : "not everything is ready";
}

function counts() {
  const nodes = [...shown.values()].map((one) => one.node);
  const of = (kind) => nodes.filter((node) => node.kind === kind);
  const ready = (kind) => { const all = of(kind), good = all.filter((node) => node.ready); return [good.length === all.length ? all.length : `${good.length}/${all.length}`, good.length < all.length]; };
  const rows = [["nodes", ...ready("node")], ["pods", ...ready("pod")], ["Services", of("service").length, false]];
  if (health) rows.push(["drift", health.drifted, health.drifted > 0], ["revision", health.revision, false]);
  $("counts").replaceChildren(...rows.map(([words, number, bad]) => {
    const item = text("li", "", bad ? "bad" : "");
    item.append(text("b", String(number)), ` ${words}`);
    return item;
  }));
}

function ends() {
  const words = [...shown.values()].map((one) => one.node).filter((node) => ["pod", "node", "host", "service"].includes(node.kind));
  $("ends").replaceChildren(...words.map((node) => { const option = text("option", node.detail); option.value = target(node.id); return option; }));
}

// As a person types it for `nsnet trace`; what is not in the default namespace keeps its namespace.
function target(id) { return id === "router" ? "lb" : id.replace(/^(pod|svc)\/default\//, "$1/"); }

// --- panels -------------------------------------------------------------------------------------------------------

function panel(id, items, total = items.length) {
  const box = $(id);
  box.querySelector("ul").replaceChildren(...items);
  const none = box.querySelector(".none");
  if (none) none.hidden = items.length > 0;
  const count = box.querySelector(".count");
  if (count) count.textContent = total ? String(total) : "";
}

function drift() {
  $("drift").hidden = false; // before the first look nobody knows whether there is any
  panel("drift", health.drift.map((line) => text("li", line)), health.drifted);
}

function events(found) {
  panel("events", found.map((event) => {
    const item = text("li", "", event.type === "Warning" ? "warning" : "");
    item.append(text("b", `${event.reason} `), `${event.about}: ${event.message}`);
    return item;
  }));
}

function broken(faults) {
  $("faults").hidden = faults.length === 0;
  panel("faults", faults.map((fault) => {
    const item = text("li", "", "warning");
    const until = fault.until ? ` until ${new Date(fault.until).toLocaleTimeString()}` : "";
    item.append(text("b", `${fault.name} `), fault.where.map(target).join(", "), until, text("p", fault.words));
    return item;
  }));
}

function marks() {
  const numbers = new Map();
  for (const [netns, number] of Object.entries(health?.drifting ?? {})) for (const [id, one] of shown) {
    if (one.node.netns !== netns || one.node.kind === "service") continue;
    const holder = one.inside ? id : one.node.inside;
    numbers.set(holder, (numbers.get(holder) ?? 0) + number);
    break;
  }
  mark("drift", new Map([...numbers].map(([id, number]) => [id, `drift ${number}`])));
  mark("fault", new Map([...shown].filter(([, one]) => one.node.faults.length).map(([id, one]) => [id, one.node.faults.join(", ")])));
}

function happened(news) {
  if (news.length === 0) return;
  const now = new Date().toLocaleTimeString();
  const many = news.length > 12 ? [...news.slice(0, 12), `and ${news.length - 12} more changes`] : news;
  const box = $("feed");
  box.querySelector(".none").hidden = true;
  const list = box.querySelector("ul");
  for (const words of many) {
    const item = text("li", "");
    const time = text("time", `${now} `);
    item.append(time, words);
    list.prepend(item);
  }
  while (list.childElementCount > KEPT) list.lastElementChild.remove();
}

function about(id) {
  const one = shown.get(id);
  $("about").hidden = !one;
  if (!one) return;
  const node = one.node, word = target(id);
  const facts = [["address", node.detail]];
  if (node.faults.length) facts.push(["broken", node.faults.join(", ")]);
  if (node.netns) facts.push(["namespace", node.netns]);
  if (["pod", "node", "host"].includes(node.kind)) facts.push(["a shell", `sudo nsnet shell ${word}`]);
  if (["pod", "node", "service"].includes(node.kind)) facts.push(["explained", `sudo nsnet explain ${word}`]);
  if (node.kind === "service") facts.push(["endpoints", some(endpoints(id))]);
  if (services(id).length) facts.push(["serves", some(services(id))]);
  $("about-name").textContent = word;
  $("about-facts").replaceChildren(...facts.flatMap(([name, value]) => [text("dt", name), text("dd", value)]));
}

function some(ids) {
  const words = ids.slice(0, 6).map(target).join(" ");
  return ids.length > 6 ? `${words} and ${ids.length - 6} more` : words || "none";
}

// --- two ends -----------------------------------------------------------------------------------------------------

const picked = { from: "", to: "" };

function pick(end, id) {
  shown.get(picked[end])?.element.classList.remove(end);
  picked[end] = id;
  shown.get(id)?.element.classList.add(end);
  $(end).value = id ? target(id) : "";
}

on("moved", place);
on("choose", (id) => {
  about(id);
  choose(id);
  const kind = shown.get(id).node.kind;
  if (kind === "network") return;
  if (picked.from && !picked.to) { if (kind !== "router" && id !== picked.from) { pick("to", id); ask(); } return; }
  again();
  pick("from", id);
  say(`from ${target(id)}: now choose where to`);
});

function again() {
  forget();
  pick("from", "");
  pick("to", "");
}

function clear() {
  again();
  about("");
  choose("");
  $("find").value = "";
  find("");
}

$("clear").onclick = clear;
$("find").addEventListener("input", () => find($("find").value));
$("find").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  const first = find($("find").value);
  if (first) { shown.get(first).element.focus(); shown.get(first).element.scrollIntoView({ block: "center" }); }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") clear();
  else if (event.key === "/" && !event.target.closest("input, select")) { event.preventDefault(); $("find").focus(); }
});
for (const end of ["from", "to"]) $(end).addEventListener("input", () => {
  shown.get(picked[end])?.element.classList.remove(end);
  picked[end] = "";
  pause();
});

// --- light and dark -----------------------------------------------------------------------------------------------

const root = document.documentElement;
const remembered = localStorage.getItem("theme");
if (remembered) root.dataset.theme = remembered;
$("theme").onclick = () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
};

wire();
listen();
