// The page: what is shown, when it is asked again, and what is said when it cannot be.

import { ask, Refusal, remember, Unreachable } from "./api.js";
import { Chart } from "./chart.js";
import * as say from "./format.js";
import * as panels from "./panels.js";

const PULSE_MS = 3_000;
const PAGE = 500; // candles
const PATHS = 12;
const DAY_MS = 86_400_000;
const LEVELS = ["0.05", "0.1", "0.25", "0.5", "0.75", "0.9", "0.95"];
const MINUTES = { s: 1 / 60, m: 1, h: 60, d: 1440, w: 10_080, M: 43_830 };

const { $ } = panels;
const root = document.documentElement;

const state = {
  series: [], models: [], candles: [], refusals: {}, key: null, step: 0, local: false, every: 15,
  ahead_ms: 0, // the service's clock minus ours
  next_at: 0, // when the forecast is asked again, by performance.now()
  round: 0, // counts the series chosen: an answer to an earlier choice is dropped
  now: () => Date.now() + state.ahead_ms,
};

const chart = new Chart($("chart"), { onHover: readout, onOlder: older });

// ---- what stays from visit to visit

const kept = (name, fallback) => localStorage.getItem(`kronos-${name}`) ?? fallback;
const keep = (name, value) => localStorage.setItem(`kronos-${name}`, value);

function theme(choice) {
  keep("theme", choice);
  const dark = choice === "dark" || (choice === "system" && matchMedia("(prefers-color-scheme: dark)").matches);
  root.dataset.theme = dark ? "dark" : "light";
  $("theme").textContent = { system: "◐", light: "☀", dark: "☾" }[choice];
  $("theme").title = { system: "As the system", light: "Light", dark: "Dark" }[choice];
  chart.colours();
}

function zone(local) {
  keep("zone", local ? "local" : "utc");
  state.local = chart.local = local;
  $("zone").textContent = local ? "Local" : "UTC";
  $("zone").title = local ? Intl.DateTimeFormat().resolvedOptions().timeZone : "Coordinated universal time";
  show();
}

function every(minutes) {
  const value = Math.min(1440, Math.max(1, Math.round(Number(minutes)) || 15));
  state.every = value;
  $("every").value = value;
  keep("every", value);
  state.next_at = performance.now() + value * 60_000;
}

// ---- asking

async function attempt(name, work) {
  try {
    const found = await work();
    delete state.refusals[name];
    return found;
  } catch (error) {
    if (!(error instanceof Refusal) || error.status === 401) throw error;
    state.refusals[name] = error.message;
    return null;
  }
}

async function begin() {
  const health = await ask("/health");
  $("version").textContent = `Kronos Nightly ${health.version}`;
  const listed = await ask("/series");
  state.ahead_ms = listed.now_ms - Date.now();
  state.series = listed.series;
  if (!state.series.length) {
    root.dataset.state = "empty";
    return veil("No candles yet", "`kronos ingest` brings them; this page shows them as soon as they are there.");
  }
  choices();
  await open(chosen());
}

function chosen() {
  const [symbol, interval] = decodeURIComponent(location.hash.slice(1)).split("/");
  const named = state.series.find((one) => one.symbol === symbol && (!interval || one.interval === interval));
  const last = kept("series", "").split("/");
  return named ?? state.series.find((one) => one.symbol === last[0] && one.interval === last[1]) ?? state.series.find((one) => one.recipes.length) ?? state.series[0];
}

function choices() {
  const symbols = [...new Set(state.series.map((one) => one.symbol))];
  const markets = new Set(symbols.map((one) => one.split(":")[0]));
  const label = (one) => (markets.size > 1 ? one.replace(":", " · ") : one.split(":")[1]);
  $("symbol").replaceChildren(...symbols.map((one) => panels.h("option", { value: one }, label(one))));
}

async function open(one) {
  const round = ++state.round;
  state.key = { symbol: one.symbol, interval: one.interval };
  state.step = Number.parseInt(one.interval, 10) * MINUTES[one.interval.at(-1)] * 60_000;
  $("symbol").value = one.symbol;
  const intervals = state.series.filter((other) => other.symbol === one.symbol).map((other) => other.interval);
  $("interval").replaceChildren(...intervals.map((name) => panels.h("option", { value: name }, name)));
  $("interval").value = one.interval;
  history.replaceState(null, "", `#${one.symbol}/${one.interval}`);
  keep("series", `${one.symbol}/${one.interval}`);
  Object.assign(state, { candles: [], forecast: null, past: null, pulse: null, scores: null, exhausted: false, refusals: {} });
  root.dataset.state = "loading";
  await refresh(round, true);
}

// Everything of the series: at the start, when the time has come, when the model has changed.
async function refresh(round = state.round, fresh = false) {
  every(state.every);
  const key = state.key;
  const asked = [
    attempt("pulse", () => ask("/pulse", key)),
    attempt("candles", () => ask("/candles", { ...key, limit: Math.max(PAGE, state.candles.length) })),
    attempt("series", () => ask("/series")),
    ask("/models"),
    attempt("forecast", () => ask("/forecast", { ...key, quantiles: LEVELS, paths: PATHS })),
  ];
  const [pulse, candles, listed, models, forecast] = await Promise.all(asked);
  if (round !== state.round) return;
  take(pulse);
  state.candles = candles ? columns(candles) : state.candles;
  state.series = listed?.series ?? state.series;
  state.held = state.series.find((one) => one.symbol === key.symbol && one.interval === key.interval);
  state.models = models.models;
  state.problem = Object.values(models.problems)[0];
  state.forecast = forecast;
  $("past-card").hidden = false;
  const [scores, past] = await Promise.all([
    attempt("scores", () => ask("/scores", { recipe: forecast?.recipe ?? pulse?.recipe })),
    attempt("past", () => before(key)),
  ]);
  if (round !== state.round) return;
  Object.assign(state, { scores, past });
  reached();
  show(fresh);
  root.dataset.state = "ready";
}

// What was said about a day ago (a horizon ago, where candles are long): on record, or recomputed.
async function before(key) {
  const last = state.candles.at(-1)?.ms;
  const model = state.models.find((one) => one.recipe === state.forecast?.recipe) ?? state.forecast;
  if (!last) return null;
  const back = Math.max(DAY_MS, state.step * Math.min(model?.horizon ?? 1, 24));
  const wanted = last - Math.ceil((state.step < DAY_MS ? DAY_MS : back) / state.step) * state.step;
  const { forecasts } = await ask("/history", { ...key, hours: Math.min((3 * back) / 3_600_000, 8_000) });
  const due = forecasts.filter((one) => one.came[0] != null && one.fan.quantiles["0.5"]);
  if (due.length) {
    const near = due.reduce((a, b) => (Math.abs(b.origin_ms - wanted) < Math.abs(a.origin_ms - wanted) ? b : a));
    if (Math.abs(near.origin_ms - wanted) <= back / 2) return { ...near, recorded: true, fan: fanned(near, near.came) };
  }
  if (!model) return null;
  const again = await ask("/forecast", { ...key, quantiles: LEVELS, origin_ms: wanted });
  const closes = new Map(state.candles.map((one) => [one.ms, one.close]));
  return { ...again, recorded: false, fan: fanned(again, again.fan.open_ms.map((ms) => closes.get(ms) ?? null)) };
}

// A fan that starts at the close it was made from.
function fanned({ origin_ms: ms, last_close: close, fan }, came = []) {
  const start = { ms, q: Object.fromEntries(LEVELS.map((level) => [level, close])) };
  const points = fan.open_ms.map((at, i) => ({ ms: at, came: came[i] ?? null, q: Object.fromEntries(LEVELS.map((level) => [level, fan.quantiles[level]?.[i]])) }));
  return [start, ...points];
}

const columns = (found) =>
  found.open_ms.map((ms, i) => ({ ms, open: found.open[i], high: found.high[i], low: found.low[i], close: found.close[i], volume: found.volume[i] }));

async function older() {
  if (state.fetching || state.exhausted || !state.candles.length) return;
  state.fetching = true;
  const round = state.round;
  try {
    const found = await ask("/candles", { ...state.key, limit: PAGE, end_ms: state.candles[0].ms });
    if (round !== state.round) return;
    state.exhausted = !found.open_ms.length;
    state.candles = [...columns(found), ...state.candles];
    picture();
  } catch (error) {
    trouble(error);
  } finally {
    state.fetching = false;
  }
}

// Little and often: the price, a new candle, a new model.
async function pulse() {
  if (document.hidden || !state.key) return;
  const round = state.round;
  const before = state.pulse;
  const found = await ask("/pulse", state.key);
  if (round !== state.round || root.dataset.state === "loading") return;
  take(found);
  reached();
  if (!before || found.predictor !== before.predictor || found.model !== before.model || found.recipe !== before.recipe) return refresh(round);
  if (found.last_ms !== before.last_ms) {
    const missing = Math.round((found.last_ms - before.last_ms) / state.step) + 1;
    const news = columns(await ask("/candles", { ...state.key, limit: Math.min(Math.max(missing, 2), PAGE) }));
    if (round !== state.round) return;
    state.candles = [...state.candles.filter((one) => one.ms < news[0].ms), ...news];
    if (state.past) for (const one of state.past.fan) one.came = state.candles.findLast((c) => c.ms === one.ms)?.close ?? one.came;
  }
  show();
}

function take(found) {
  if (!found) return;
  state.pulse = found;
  state.ahead_ms = found.now_ms - Date.now();
}

// ---- showing

function picture(fresh = false) {
  const { candles, pulse: beat, forecast } = state;
  const forming = beat?.forming ? [{ ...beat.forming, ms: beat.forming.open_ms, forming: true }] : [];
  chart.set({
    candles: [...candles.filter((one) => !forming.length || one.ms < forming[0].ms), ...forming],
    step: state.step,
    fan: forecast ? fanned(forecast) : null,
    past: state.past,
    price: beat?.price.value,
    paths: forecast?.paths,
    fresh,
  });
  const last = candles.at(-1);
  if (!last) return;
  const said = forecast ? `; forecast of ${forecast.horizon} candles, median ${say.price(forecast.outlook.median)}, up in ${say.plain(forecast.outlook.probability_up)} of the paths` : "; no forecast";
  $("chart").setAttribute("aria-label", `Chart of ${state.key.symbol} ${state.key.interval}: ${candles.length} candles to ${new Date(last.ms).toISOString()}, close ${say.price(last.close)}${said}.`);
}

function show(fresh = false) {
  if (!state.key || !state.models) return;
  panels.headline(state);
  panels.outlook(state);
  panels.past(state);
  panels.gate(state);
  panels.scores(state);
  panels.data(state);
  panels.model(state);
  for (const key of document.querySelectorAll(".key.fan")) key.hidden = !state.forecast;
  picture(fresh);
  banners();
  if (state.candles.length) veil();
  else if (state.refusals.candles) veil("No candles to show", state.refusals.candles);
  readout(chart.cursor ? chart.slot(chart.cursor.ms) : null);
}

function readout(slot, spoken = false) {
  const one = slot ?? (chart.candles.length ? { ms: chart.last.ms, candle: chart.last } : null);
  if (!one) return;
  const bit = (name, value) => panels.h("span", {}, `${name} `, panels.h("b", {}, value));
  const parts = [panels.h("span", {}, panels.h("b", {}, say.both(one.ms, state.local)))];
  if (one.candle) {
    const { open, high, low, close, volume } = one.candle;
    parts.push(bit("O", say.price(open)), bit("H", say.price(high)), bit("L", say.price(low)), bit("C", say.price(close)), bit("V", say.amount(volume)));
  }
  if (one.ahead) parts.push(bit("median", say.price(one.ahead.q["0.5"])), ...[["50 %", "0.25", "0.75"], ["80 %", "0.1", "0.9"], ["90 %", "0.05", "0.95"]].map(([name, a, b]) => bit(name, `${say.price(one.ahead.q[a])} to ${say.price(one.ahead.q[b])}`)));
  if (slot && one.before && chart.shows.past) parts.push(bit("said", `${say.price(one.before.q["0.5"])}, 90 % ${say.price(one.before.q["0.05"])} to ${say.price(one.before.q["0.95"])}`));
  $("readout").replaceChildren(...parts);
  if (spoken) $("spoken").textContent = $("readout").innerText.replaceAll("\n", ", ");
}

function veil(title, text) {
  $("veil").hidden = !title;
  if (title) panels.fill("veil", panels.h("p", {}, panels.h("b", {}, title), ...panels.sentence(text)));
}

function banner(kind, title, text) {
  return panels.h("div", { class: `banner ${kind}` }, panels.h("b", {}, title), panels.h("span", {}, ...panels.sentence(text)));
}

function banners() {
  const found = [];
  const beat = state.pulse;
  if (state.lost) found.push(banner("bad", state.lost_how, `${state.lost} What you see is from ${say.moment(state.lost_at, state.local)}; it is tried again every few seconds.`));
  else if (beat) {
    if (!state.models.length) found.push(banner("", "No model yet", state.problem ?? `\`kronos run\` trains one, judges it, and lets it serve here if it is better. Until then: ${state.forecast ? "what the references say" : "candles"}.`));
    if (state.refusals.forecast && (state.models.length || !state.problem)) found.push(banner("warn", "No forecast", state.refusals.forecast));
    if (beat.behind > 1) {
      const age = say.span(state.now() - (beat.last_ms + state.step));
      const tail = beat.following === "off" ? "`kronos serve --follow` or `kronos ingest` brings them." : beat.trouble || "They are being fetched.";
      found.push(banner("warn", "Stale candles", `The newest one closed ${age} ago and ${say.count(beat.behind)} are missing since${state.forecast ? "; a forecast starts there, not now" : ""}. ${tail}`));
    } else if (beat.trouble && beat.following !== "streaming") found.push(banner("warn", "Not live", beat.trouble));
  }
  const text = found.map((one) => one.textContent).join();
  if ($("banners").textContent !== text) $("banners").replaceChildren(...found); // so that it is read out once
}

function reached() {
  state.lost = null;
  document.body.classList.remove("stalled");
}

function trouble(error) {
  if (error instanceof Refusal && error.status === 401) return wantToken(error);
  if (!(error instanceof Refusal || error instanceof Unreachable)) throw error;
  state.lost_at = state.lost ? state.lost_at : Date.now();
  state.lost = error.message;
  state.lost_how = error instanceof Refusal ? "The service has trouble" : "The service cannot be reached";
  root.dataset.state = state.key && root.dataset.state === "ready" ? "ready" : "lost";
  document.body.classList.add("stalled");
  if (!state.candles.length) veil(state.lost_how, `${error.message} It is tried again every few seconds.`);
  banners();
}

function wantToken() {
  if ($("ask").open) return;
  root.dataset.state = "locked";
  $("ask").showModal();
}

// ---- the course of things

let busy = false;
async function act(work) {
  if (busy) return;
  busy = true;
  try {
    await work();
  } catch (error) {
    trouble(error);
  } finally {
    busy = false;
  }
}

function tick() {
  const left = state.next_at - performance.now();
  $("countdown").textContent = state.key ? say.clock(left) : "–:––";
  if (state.pulse?.price.live && !state.lost) panels.headline(state);
  if (left <= 0 && state.key && !document.hidden) act(() => refresh());
}

function again() {
  if ($("ask").open) return;
  act(() => (state.key ? (root.dataset.state === "ready" ? pulse() : refresh(state.round, true)) : begin()));
}

function pick(symbol, interval) {
  const of = state.series.filter((one) => one.symbol === symbol);
  const one = of.find((other) => other.interval === interval) ?? of[0];
  busy = false; // a choice does not wait for what was asked before it
  if (one) act(() => open(one));
}

$("symbol").addEventListener("change", (event) => pick(event.target.value, $("interval").value));
$("interval").addEventListener("change", (event) => pick($("symbol").value, event.target.value));
$("every").addEventListener("change", (event) => every(event.target.value));
$("now").addEventListener("click", () => act(() => (state.key ? refresh() : begin())));
$("zone").addEventListener("click", () => zone(!state.local));
$("theme").addEventListener("click", () => theme({ system: "light", light: "dark", dark: "system" }[kept("theme", "system")]));
$("show-past").addEventListener("change", (event) => ((chart.shows.past = event.target.checked), chart.draw()));
$("show-paths").addEventListener("change", (event) => ((chart.shows.paths = event.target.checked), chart.draw()));
$("in").addEventListener("click", () => chart.zoom(0.75));
$("out").addEventListener("click", () => chart.zoom(1.34));
$("fit").addEventListener("click", () => chart.fit());
$("ask").addEventListener("cancel", (event) => event.preventDefault());
$("ask").addEventListener("close", () => (remember($("token").value.trim()), ($("token").value = ""), act(begin)));
addEventListener("hashchange", () => state.series.length && pick(...decodeURIComponent(location.hash.slice(1)).split("/")));
document.addEventListener("visibilitychange", () => !document.hidden && again());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme(kept("theme", "system")));

theme(kept("theme", "system"));
zone(kept("zone", "utc") === "local");
every(kept("every", 15));
setInterval(tick, 1_000);
setInterval(again, PULSE_MS);
act(begin);
