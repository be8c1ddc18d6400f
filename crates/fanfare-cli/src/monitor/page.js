"use strict";
// Whatever comes from messages becomes text and never markup: everything is set through `textContent`.
const PAUSE = 2000, POINTS = 120, FEWEST = 30, SVG = "http://www.w3.org/2000/svg";
const byId = id => document.getElementById(id);
// What turns the direction of text would show it as something else than it is.
const plain = text => String(text).replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, it => "\\u{" + it.codePointAt(0).toString(16) + "}");
const element = (name, content, className) => {
  const made = document.createElement(name);
  if (content instanceof Node) made.append(content);
  else if (content !== undefined && content !== null) made.textContent = plain(content);
  if (className) made.className = className;
  return made;
};
const row = cells => {
  const made = element("tr");
  made.append(...cells.map(([content, className]) => element("td", content, className)));
  return made;
};
// What is unchanged stays, with whatever somebody has selected in it.
const drawn = {};
function fill(id, data, rows) {
  const text = JSON.stringify(data);
  if (drawn[id] === text) return;
  drawn[id] = text;
  const made = rows(data), empty = byId(id).dataset.empty;
  byId(id).replaceChildren(...(made.length || !empty ? made : [row([[empty, "empty"]])]));
}

const milliseconds = utc => Date.parse(utc.replace(" ", "T") + "Z");
const plural = (count, one) => count + " " + one + (count === 1 ? "" : "s");
const decimals = number => Number(number.toPrecision(3)).toLocaleString("en");
function duration(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const at = Math.max(0, parts.findIndex(([size]) => seconds >= size));
  if (seconds === 0) return "0 s";
  const [size, unit] = parts[at], rest = parts[at + 1];
  const more = rest && Math.floor(seconds % size / rest[0]);
  return Math.floor(seconds / size) + " " + unit + (more ? " " + more + " " + rest[1] : "");
}
let now = Date.now();
// What a command needs, so that it means the queues which are shown.
let toPrefix = "";
function ago(utc) {
  const made = element("time");
  made.dateTime = utc.replace(" ", "T") + "Z";
  made.title = utc + " UTC";
  made.textContent = duration(now - Date.parse(made.dateTime)) + " ago";
  return made;
}
const refreshTimes = () => document.querySelectorAll("time").forEach(it => {
  it.textContent = duration(now - Date.parse(it.dateTime)) + " ago";
});

// Of those that are done, what was not awaited any longer has failed too.
function counts(fanOut) {
  const missing = fanOut.missing ?? 0, failed = Math.max(0, fanOut.failed - missing);
  return { failed, missing, succeeded: Math.max(0, fanOut.done - failed - missing) };
}
function meter(parts, most) {
  const made = element("div", undefined, "meter");
  for (const [count, className] of parts) {
    if (!count) continue;
    const piece = element("i", undefined, className);
    piece.style.width = 100 * count / Math.max(most, 1) + "%";
    made.append(piece);
  }
  return made;
}
function bar(fanOut) {
  const { succeeded, failed, missing } = counts(fanOut);
  return meter([[succeeded, "good"], [failed, "bad"], [missing, "gone"]], fanOut.targets);
}
function tally(fanOut) {
  const { succeeded, failed, missing } = counts(fanOut);
  let text = succeeded + failed + " of " + fanOut.targets;
  if (failed) text += ", " + failed + " failed";
  if (missing) text += ", " + missing + " missing";
  return text;
}
const STATES = { opening: "waits for its queue", gathering: "waits for targets", calling: "publishes callbacks", ending: "ends" };
const link = fanOut => {
  const made = element("a", fanOut.cid);
  made.href = "#/fan-outs/" + fanOut.cid + "/" + fanOut.run;
  return made;
};

// Each plot makes a number of two looks, or nothing. A coordinator that has just come or gone counts in neither.
function change(field, after, before) {
  const earlier = new Map(before.coordinators.map(it => [it.id, it.totals]));
  const both = after.coordinators.filter(it => it.totals && earlier.get(it.id));
  if (!both.length) return null;
  return both.reduce((sum, it) => sum + it.totals[field] - earlier.get(it.id)[field], 0);
}
const rate = field => (after, before) => {
  const more = change(field, after, before);
  return more === null ? null : more * 1000 / (after.now_ms - before.now_ms);
};
const queued = state => Object.values(state.services).reduce((sum, queue) => sum + (queue?.waiting ?? 0), state.waiting ?? 0);
const PLOTS = [
  ["Open fan-outs", "", state => state.told ? state.open_count : null],
  ["Fan-outs ended", "/s", rate("fan_outs")],
  ["Succeeded", "/s", rate("succeeded")],
  ["Failed", "/s", rate("failed")],
  ["Fan-in, mean", "s", (after, before) => {
    const ended = change("fan_outs", after, before);
    return ended > 0 ? change("fan_in_ms", after, before) / ended / 1000 : null;
  }],
  ["Messages queued", "", queued],
].map(([title, unit, measure]) => {
  const figure = element("figure"), value = element("b", "–");
  const svg = document.createElementNS(SVG, "svg");
  const area = document.createElementNS(SVG, "path"), line = document.createElementNS(SVG, "polyline");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", title);
  svg.append(area, line);
  figure.append(element("figcaption", title), value, svg);
  byId("plots").append(figure);
  return { unit, measure, value, svg, area, line, points: [] };
});
function draw(plot, measured) {
  plot.points.push(measured ?? plot.points.at(-1) ?? 0);
  plot.points = plot.points.slice(-POINTS);
  if (measured !== null) plot.value.replaceChildren(decimals(measured), element("small", plot.unit));
  const most = Math.max(...plot.points, 1e-9), last = plot.points.length - 1;
  const points = plot.points.map((y, x) => x + "," + (96 - 90 * y / most)).join(" ");
  // What there is takes the whole width, once it is a minute.
  const first = Math.min(0, last - FEWEST);
  plot.svg.setAttribute("viewBox", first + " 0 " + (last - first) + " 100");
  plot.line.setAttribute("points", points);
  plot.area.setAttribute("d", "M0,100 L" + points.replaceAll(" ", " L") + " L" + last + ",100 Z");
}

let before = null;
function measure(state) {
  const isNew = !before || state.now_ms > before.now_ms;
  if (before && isNew) for (const plot of PLOTS) draw(plot, plot.measure(state, before));
  if (isNew) before = state;
}
function coordinator(it) {
  const made = element("li", it.name, it.answers ? "" : "silent");
  if (!it.answers) made.append(" does not answer; it did last at ", it.last_utc.slice(11), " UTC");
  return made;
}
function depth(queue, most) {
  const made = element("div");
  made.append(element("b", queue ? queue.there ? queue.waiting.toLocaleString("en") : "no queue" : "unknown"));
  if (queue?.there) made.append(meter([[queue.waiting, "under-way"]], most));
  return made;
}
function pool([service, queue], _, pools) {
  const most = Math.max(...pools.map(([, queue]) => queue?.waiting ?? 0));
  const nobody = queue?.there && queue.consumers === 0;
  return row([[service, "service"], [depth(queue, most), "depth"],
    [queue?.there ? queue.consumers.toLocaleString("en") : "–", nobody ? "number alarm" : "number"]]);
}
function tellOfFanOuts(state) {
  const unlisted = state.open_count - state.open.length;
  byId("open-count").textContent = state.open_count + (unlisted > 0 ? ", of which " + unlisted + " are not listed" : "");
  fill("open", state.open, all => all.map(it => row([[link(it), "cid"], [it.source, "source"], [ago(it.req_ts_utc), "time"],
    [bar(it), "bar"], [it.state === "gathering" ? tally(it) : tally(it) + ", " + (STATES[it.state] ?? it.state), "number"]])));
  fill("failures", state.failures, all => all.map(it => row([[it.at_utc.slice(5), "time"], [link(it), "cid"], [it.key, "key"],
    [it.service, "service"], [element("pre", it.exception), "why"]])));
  fill("ended", state.ended, all => all.map(it => row([[link(it), "cid"], [it.source, "source"], [ago(it.ended_utc), "time"],
    [bar(it), "bar"], [tally(it), "number"], [it.ended_by ?? "all targets", it.ended_by ? "by" : "by all"]])));
}
async function lookAtAll() {
  const state = await ask("api/state");
  [now, toPrefix] = [state.now_ms, state.to_prefix ?? ""];
  measure(state);
  byId("who").textContent = state.role + " " + state.version + (state.own ? ", which tells of its own fan-outs only" : "");
  const untold = "What was told last of fan-outs and failures, if anything, is left below.";
  byId("trouble").textContent = plain([...state.hindrances, ...(state.shortfall ? [state.shortfall] : []), ...(state.told ? [] : [untold])].join("\n"));
  fill("coordinators", state.own ? [] : state.coordinators, all => all.map(coordinator));
  byId("waiting").textContent = state.waiting ? plural(state.waiting, "fan-out") + " more wait until a coordinator has room" : "";
  if (state.told) tellOfFanOuts(state);
  else byId("open-count").textContent = "unknown";
  fill("pools", Object.entries(state.services), all => all.map(pool));
  byId("parked-count").textContent = state.parked ?? "unknown";
  byId("look").hidden = state.own || !state.parked;
  byId("parked-hint").textContent = !state.parked ? "Nothing is kept for a person to look at."
    : state.own ? "`fanfare parked list" + toPrefix + "` and `fanfare dashboard" + toPrefix + "` tell why."
    : "To look takes the messages from their queue for a moment and puts them back in their order, so it is done only when asked for.";
  refreshTimes();
}
function why(parked) {
  const made = element("div", element("pre", parked.reason));
  made.append(element("small", "fanfare parked show " + parked.id + toPrefix, "faint"));
  return made;
}
byId("look").addEventListener("click", async () => {
  const told = await ask("api/parked").catch(error => ({ problem: error.message }));
  const messages = told.messages ?? [], unlisted = (told.matching ?? 0) - messages.length + (told.unseen ?? 0);
  const rows = messages.map(it => row([[it.parked_at?.slice(5), "time"], [it.service ?? it.kind, "key"], [it.cid, "cid"], [why(it), "why"]]));
  if (told.problem) rows.push(row([[told.problem, "why alarm"]]));
  if (unlisted > 0) rows.push(row([["and " + unlisted + " more", "why"]]));
  byId("parked").replaceChildren(...rows);
});

// The bars of one target: from when, until when, and what it does meanwhile. And what there is to say.
function timed(target, begun) {
  if (target.at_utc) {
    const at = milliseconds(target.at_utc), after = duration(at - begun);
    const [className, text] = target.ended_by ? ["gone", "missing at the " + target.ended_by + ", after " + after]
      : target.ok ? ["good", "responded after " + after] : ["bad", "failed after " + after];
    return { bars: [[begun, at, className]], text };
  }
  const waits = (until, text) => ({ bars: [[begun, until, "waits"]], text });
  switch (target.where) {
    case "running": {
      const since = milliseconds(target.since_utc), attempt = target.attempt > 1 ? ", attempt " + target.attempt : "";
      return { bars: [[begun, since, "waits"], [since, Math.max(since, now), "under-way"]],
        text: "runs for " + duration(now - since) + " at " + target.worker + attempt };
    }
    case "retrying": {
      const until = milliseconds(target.until_utc);
      return { bars: [[begun, now, "waits"], [now, until, "gone"]],
        text: "attempt " + target.attempt + " failed; next in " + duration(until - now) };
    }
    case "parked": return waits(now, "parked: " + target.reason);
    case "no-queue": return waits(now, "its service has no queue");
    case "queued": return waits(now, "waits in its queue");
    case "handed": return waits(now, "handed to a worker");
    case "elsewhere": return waits(now, "waits for another attempt, or is lost");
    default: return waits(now, "has not responded");
  }
}
// Seconds between two ticks of the axis.
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400], MOST_TICKS = 5;
function timeline(targets, begun) {
  const rows = targets.map(target => ({ target, ...timed(target, begun) }));
  const end = Math.max(begun + 1000, ...rows.flatMap(({ bars }) => bars.map(([, until]) => until)));
  const at = time => 100 * Math.min(1, Math.max(0, (time - begun) / (end - begun)));
  const axis = element("div", undefined, "row axis"), ticks = element("div", undefined, "track");
  const step = STEPS.find(step => step * 1000 * MOST_TICKS >= end - begun) ?? (end - begun) / 1000 / MOST_TICKS;
  for (let time = begun; time <= end; time += step * 1000) {
    const tick = element("span", duration(time - begun));
    tick.style.left = at(time) + "%";
    ticks.append(tick);
  }
  axis.append(element("div", undefined, "key"), ticks, element("div", undefined, "what"));
  return [axis, ...rows.map(({ target, bars, text }) => {
    const made = element("div", undefined, "row"), key = element("div", target.key, "key"), track = element("div", undefined, "track");
    if (target.service !== target.key) key.append(element("small", target.service));
    for (const [from, until, className] of bars) {
      const piece = element("i", undefined, className);
      piece.style.left = at(from) + "%";
      piece.style.width = at(until) - at(from) + "%";
      track.append(piece);
    }
    track.title = plain(text);
    made.append(key, track, element("div", text, "what"));
    return made;
  })];
}
function facts(fanOut) {
  const told = [["Source", fanOut.source], ["Run", fanOut.run], ["Invoked (UTC)", fanOut.req_ts_utc]];
  if (fanOut.ended_utc) told.push(["Ended (UTC)", fanOut.ended_utc], ["Ended by", fanOut.ended_by ?? "all targets"]);
  else told.push(["State", STATES[fanOut.state] ?? fanOut.state], ["Deadline (UTC)", fanOut.deadline_utc ?? "none"]);
  return told.map(([name, value]) => {
    const made = element("div");
    made.append(element("dt", name), element("dd", value));
    return made;
  });
}
async function lookAtOne(cid, run) {
  const told = await ask("api/fan-out?" + new URLSearchParams({ cid, run }));
  now = told.now_ms;
  byId("trouble").textContent = plain(told.problem ?? "");
  byId("cid").textContent = cid;
  fill("advice", told.advice, all => all.map(it => element("li", it)));
  const fanOut = told.fan_out;
  const failed = fanOut ? [...fanOut.failed_targets, ...fanOut.missing_targets.filter(it => it.exception)] : [];
  byId("exceptions-card").hidden = !failed.length;
  if (!fanOut) {
    for (const id of ["facts", "progress", "timeline"]) fill(id, null, () => []);
    byId("unlisted").textContent = byId("scale").textContent = "";
    return;
  }
  const begun = milliseconds(fanOut.req_ts_utc), targets = [...fanOut.responded_targets, ...fanOut.missing_targets];
  targets.sort((one, other) => one.place - other.place);
  fill("facts", fanOut, facts);
  fill("progress", fanOut, it => [element("div", tally(it)), bar(it)]);
  byId("scale").textContent = "from the invocation to each response, in whole seconds";
  fill("timeline", [targets, fanOut.ended_utc ?? now], () => timeline(targets, begun));
  const unlisted = fanOut.targets - targets.length;
  byId("unlisted").textContent = unlisted > 0 ? "and " + plural(unlisted, "target") + " more" : "";
  fill("exceptions", failed, all => all.map(it => row([[it.key, "key"], [it.service, "service"],
    [element("pre", it.exception), "why"]])));
}

async function ask(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}
// Nothing is asked while the page is not to be seen.
const ONE = /^#\/fan-outs\/([\w.:-]+)\/([0-9a-f]{32})$/;
let turn = 0;
async function watch() {
  const own = ++turn;
  const isOne = ONE.exec(location.hash);
  byId("overview").hidden = Boolean(isOne);
  byId("fan-out").hidden = !isOne;
  while (own === turn && !document.hidden) {
    try {
      await (isOne ? lookAtOne(isOne[1], isOne[2]) : lookAtAll());
      byId("seen").textContent = "as of " + new Date(now).toISOString().slice(11, 19) + " UTC";
    } catch (error) {
      byId("trouble").textContent = "This page cannot be refreshed: " + error.message;
    }
    await new Promise(resolve => setTimeout(resolve, PAUSE));
  }
}
addEventListener("hashchange", watch);
document.addEventListener("visibilitychange", watch);
watch();
