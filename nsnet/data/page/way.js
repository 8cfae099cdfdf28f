// The trace: asked of the server, said as a list of hops, and run through the picture.

import { byNetns, middle, redraw, say, shown, text } from "/picture.js";

const STEP = 420;   // ms from one box to the next
const still = matchMedia("(prefers-reduced-motion: reduce)");
const $ = (id) => document.getElementById(id);
const [track, done, packet, lines] = [$("track"), $("done"), $("packet"), $("lines")];

let found = null;    // the answer
let stops = [];      // of the way shown: {id, where, hops, reply}
let at = 0;          // where the packet is, in stops; between two while it moves
let playing = 0;     // the animation frame asked for
let asking = 0;      // number of the last question: answers to earlier ones are not shown

// --- asking -------------------------------------------------------------------------------------------------------

export async function ask(send = false) {
  const ends = { from: $("from").value.trim(), to: $("to").value.trim(), protocol: $("protocol").value };
  if (!ends.from || !ends.to) { verdict("a trace has two ends: click two boxes, or type them", "bad"); return; }
  forget();
  const number = asking += 1;
  verdict(send ? "a packet is on its way …" : "looking at the kernel …");
  let answer;
  try {
    const response = await fetch(`${send ? "/packet" : "/way"}?${new URLSearchParams(ends)}`, { method: send ? "POST" : "GET" });
    answer = response.headers.get("Content-Type") === "application/json" ? await response.json()
      : { error: await response.text(), hint: "" };
  } catch {
    answer = { error: "nsnet ui does not answer", hint: "was it ended? start it again" };
  }
  if (number === asking) show(answer, send);
}

export function forget() {
  found = null; stops = []; at = 0; asking += 1;
  pause();
  for (const id of ["ways", "hops"]) $(id).replaceChildren();
  $("player").hidden = true;
  verdict("");
  place();
}

function verdict(words, kind = "", more = "") {
  const box = $("verdict");
  box.className = kind;
  box.replaceChildren(words, ...(more ? [text("small", more)] : []));
}

function show(answer, send) {
  if (answer.error) { verdict(answer.error, "bad", answer.hint); return; }
  found = answer;
  const buttons = answer.ways.map((way, number) => {
    const arrives = good(way);
    const told = answer.ways.length > 1 || send;
    const chance = way.chance < 0.9999 && way.chance >= 0.01 ? ` · ${Math.round(way.chance * 100)}%` : "";
    const words = answer.ways.length > 6 ? String(number + 1) : `${send ? "predicted " : "way "}${number + 1}${chance}`;
    const button = text("button", words, arrives ? "" : "bad");
    button.type = "button";
    button.hidden = !told;
    button.onclick = () => choose(number);
    return button;
  });
  if (answer.observed) {
    const button = text("button", "the packet sent", answer.agree ? "" : "bad");
    button.type = "button";
    button.onclick = () => choose(-1);
    buttons.unshift(button);
  }
  if (answer.more) buttons.push(text("span", "and more, not followed"));
  $("ways").replaceChildren(...buttons);
  choose(answer.observed ? -1 : Math.max(0, answer.ways.findIndex((way) => !good(way))));
}

function good(way) { return way.result === "delivered" && way.listening && way.replies.every((reply) => reply.result === "delivered"); }

// --- one way ------------------------------------------------------------------------------------------------------

function choose(number) {
  pause();
  const way = number < 0 ? null : found.ways[number];
  const own = way ? number + (found.observed ? 1 : 0) : 0;
  [...$("ways").querySelectorAll("button")].forEach((button, index) => button.setAttribute("aria-pressed", String(index === own)));
  const hops = way ? way.hops : found.observed.hops;
  const reply = way?.replies.find((one) => one.result !== "delivered") ?? way?.replies[0];
  stops = [...grouped(hops, false), ...grouped(reply?.hops ?? [], true)];
  if (way) verdict(way.verdict, good(way) ? "good" : "bad", reply?.verdict ?? "");
  else verdict(found.verdict, found.agree ? "good" : "bad", `observed: ${found.observed.words}`);
  lines.classList.toggle("lost", way ? !good(way) : !found.agree);
  list();
  at = 0;
  $("player").hidden = stops.length < 2;
  if (still.matches) { at = stops.length - 1; place(); } else play();
}

// Hops of one namespace after another are one stop.
function grouped(hops, reply) {
  const all = [];
  for (const hop of hops) {
    const last = all.at(-1);
    if (last && last.netns === hop.netns) last.hops.push(hop);
    else all.push({ netns: hop.netns, id: byNetns.get(hop.netns) ?? "", where: hop.where, hops: [hop], reply });
  }
  return all;
}

function list() {
  const items = [];
  stops.forEach((stop, number) => {
    if (stop.reply && !stops[number - 1]?.reply) items.push(text("li", "the reply", "turn"));
    const item = text("li", "");
    item.dataset.stop = number;
    const button = text("button", stop.where);
    button.type = "button";
    button.onclick = () => { pause(); at = number; place(); };
    item.append(button);
    for (const hop of stop.hops) {
      if (hop.passed) continue;
      const line = text("p", hop.words ? `${hop.what}: ${hop.words}` : hop.what);
      if (hop.service || hop.policy) line.append(text("span", hop.service || hop.policy, "owner"));
      item.append(line);
      if (hop.rule) item.append(text("p", hop.rule, "rule"));
      if (hop.changed) item.append(text("p", hop.changed, "changed"));
    }
    items.push(item);
  });
  $("hops").replaceChildren(...items);
}

// --- the packet runs ----------------------------------------------------------------------------------------------

export function play() {
  if (stops.length < 2) return;
  if (at >= stops.length - 1) at = 0;
  let before = performance.now();
  $("play").textContent = "❚❚ pause";
  const run = (now) => {
    at = Math.min(stops.length - 1, at + Math.min(now - before, 100) / STEP);
    before = now;
    place();
    if (at < stops.length - 1) playing = requestAnimationFrame(run); else pause();
  };
  playing = requestAnimationFrame(run);
}

export function pause() {
  cancelAnimationFrame(playing);
  playing = 0;
  $("play").textContent = "▶ play";
}

export function step(by) {
  if (!stops.length) return;
  pause();
  at = Math.min(stops.length - 1, Math.max(0, (by > 0 ? Math.floor(at) : Math.ceil(at)) + by));
  place();
}

let marked = [];

// Draws the way and the packet where it is now. What is scrolled out of sight is drawn beyond the edge, and clipped.
export function place() {
  const points = stops.map((stop) => middle(stop.id));
  lines.classList.toggle("tracing", stops.length > 0);
  const now = Math.floor(at);
  lines.classList.toggle("reply", Boolean(stops[now]?.reply));
  track.setAttribute("d", path(points));
  const [from, to] = [points[now], points[now + 1]];
  const here = from && to ? { x: from.x + (to.x - from.x) * (at - now), y: from.y + (to.y - from.y) * (at - now) } : from;
  const start = stops[now]?.reply ? stops.findIndex((stop) => stop.reply) : 0;
  done.setAttribute("d", path([...points.slice(start, now + 1), here]));
  packet.style.visibility = here ? "visible" : "hidden";
  if (here) { packet.setAttribute("cx", here.x); packet.setAttribute("cy", here.y); }
  light(Math.round(at));
}

function path(points) {
  return points.filter(Boolean).map(({ x, y }, number) => `${number ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

function light(number) {
  const stop = stops[number];
  const box = stop && shown.get(stop.id)?.element;
  const item = stop && $("hops").querySelector(`[data-stop="${number}"]`);
  if (marked[0] === box && marked[1] === item) return;
  for (const one of marked) one?.classList.remove("at", "ended");
  marked = [box, item];
  for (const one of marked) one?.classList.add("at");
  if (box && number === stops.length - 1 && lines.classList.contains("lost")) box.classList.add("ended");
  if (item) reveal(item, $("hops"));
  $("step").textContent = stop ? `${number + 1} of ${stops.length}: ${stop.where}` : "";
  if (stop && playing) say(`${stop.reply ? "reply: " : ""}${stop.where}: ${stop.hops.filter((hop) => !hop.passed).map((hop) => hop.words || hop.what).join(", ")}`);
}

// Scrolls the list alone, not what it stands in.
function reveal(item, list) {
  const top = item.offsetTop - list.offsetTop;
  if (top < list.scrollTop) list.scrollTop = top;
  else list.scrollTop = Math.max(list.scrollTop, Math.min(top, top + item.offsetHeight - list.clientHeight));
}

export function wire() {
  $("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  $("send").onclick = () => ask(true);
  $("play").onclick = () => (playing ? pause() : play());
  $("back").onclick = () => step(-1);
  $("on").onclick = () => step(1);
  redraw();
}
