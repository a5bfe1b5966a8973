// The cards and lines around the chart. Text only ever enters as text.

import * as say from "./format.js";

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else if (value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((one) => one != null));
  return element;
}

export const $ = (id) => document.getElementById(id);

export const fill = (id, ...children) => $(id).replaceChildren(...children.filter(Boolean));

const row = (name, value) => h("div", { class: "row" }, h("span", {}, name), h("span", {}, value));

// A sentence with `commands` in it.
export function sentence(text) {
  return text.split("`").map((part, i) => (i % 2 ? h("code", {}, part) : part));
}

const empty = (text) => h("p", { class: "empty" }, ...sentence(text));

const arrow = (share) => (share > 0 ? "▲" : share < 0 ? "▼" : "");
const tone = (share) => (share > 0 ? "up" : share < 0 ? "down" : "");

export function headline(state) {
  const { pulse, local } = state;
  const [market, symbol] = state.key.symbol.split(":");
  $("name").textContent = symbol;
  $("market").textContent = `${say.MARKETS[market] ?? market} · ${state.key.interval}`;
  if (!pulse) return;
  const { price, change_24h: day } = pulse;
  $("price").textContent = say.price(price.value);
  $("change").className = `delta ${tone(day)}`;
  $("change").textContent = day == null ? "" : `${arrow(day)} ${say.percent(day)} 24 h`;
  $("asof").textContent = price.live
    ? `Live. This candle closes in ${say.clock(pulse.next_close_ms - state.now())}.`
    : `Close of the candle that ended ${say.both(pulse.price.at_ms + 1, local)}`;
  const live = $("live");
  live.hidden = pulse.following === "off";
  live.classList.toggle("off", pulse.following !== "streaming");
  live.textContent = { streaming: "live", polling: "polling", connecting: "connecting", stopped: "stopped" }[pulse.following] ?? "";
}

export function outlook(state) {
  const { forecast, local } = state;
  if (!forecast) {
    const why = state.models.length ? state.refusals.forecast : null; // the banner says why, where there is no model
    return fill("ahead", why ? empty(why) : null);
  }
  const { outlook: ends, fan, last_close: last } = forecast;
  const at = (level) => fan.quantiles[level].at(-1);
  const change = ends.median / last - 1;
  const up = ends.probability_up;
  const bar = h("div", { class: "odds", role: "img", "aria-label": `Up in ${say.plain(up)} of the paths` }, h("i", { class: "yes" }), h("i", { class: "no" }));
  bar.children[0].style.width = `${100 * up}%`;
  bar.children[1].style.width = `${100 * (1 - up)}%`;
  const signed = h("span", { class: `delta ${tone(change)}` }, `${arrow(change)} ${say.percent(change)}`);
  fill(
    "ahead",
    fact("Median forecast", h("span", { class: "fan-ink num" }, say.price(ends.median)), signed),
    fact("Probability of up", say.plain(up), bar),
    fact("90 % of the paths end in", h("span", { class: "num" }, `${say.price(at("0.05"))} to ${say.price(at("0.95"))}`), `${say.percent(at("0.05") / last - 1, 1)} to ${say.percent(at("0.95") / last - 1, 1)}`),
    fact(`Horizon end, ${forecast.horizon} candles`, say.moment(ends.end_ms + 1, local), `${say.moment(ends.end_ms + 1, !local)}`),
  );
}

function fact(name, big, small) {
  return h("div", { class: "fact" }, h("div", { class: "sub" }, name), h("div", { class: "big num" }, big), h("div", { class: "sub" }, small));
}

export function past(state) {
  const { past: said, local } = state;
  if (!said) return fill("past", empty(state.refusals.past ?? "Nothing yet: a forecast has to wait until its candles have come."));
  const points = said.fan.slice(1);
  const came = points.filter((one) => one.came != null);
  const inside = came.filter((one) => one.q["0.05"] <= one.came && one.came <= one.q["0.95"]).length;
  const last = came.at(-1);
  const rows = [
    row("From the close at", say.moment(said.origin_ms + state.step, local)),
    row("By", said.recorded ? `${maker(state, said)}, on record` : `${said.model === "references" ? "the references" : "today's model"}, recomputed`),
  ];
  if (last) {
    const [then, told, real] = [said.last_close, last.q["0.5"], last.came];
    rows.push(
      row(`Said for ${say.moment(last.ms + state.step, local)}`, `${say.price(told)}  (${say.percent(told / then - 1)})`),
      row("Came", `${say.price(real)}  (${say.percent(real / then - 1)})`),
      row("Inside the 90 % band", `${inside} of ${came.length} candles`),
    );
  } else rows.push(row("Came", "nothing yet"));
  fill("past", ...rows, said.recorded ? null : h("p", { class: "sub" }, "Nothing was on record then: this is what the model of now says, knowing the candles up to there."));
}

function maker(state, said) {
  if (said.predictor === "references") return "the references";
  return state.models.some((one) => one.predictor === said.predictor) ? "today's champion" : "an earlier model";
}

const VERDICTS = { promote: "Promoted", keep: "Kept the champion", reject: "Rejected" };

export function gate(state) {
  const { scores, local } = state;
  if (!scores) return fill("gate", empty("No night has been judged yet."));
  const badge = h("span", { class: `badge ${scores.verdict}` }, VERDICTS[scores.verdict] ?? scores.verdict);
  const reasons = h("ul", {}, ...scores.reasons.map((one) => h("li", {}, one)));
  fill("gate", h("div", {}, badge), reasons, h("p", { class: "sub" }, `Night ${scores.night.slice(0, 8)} of ${scores.recipe}, ${say.moment(scores.finished_ms, local)}`));
}

const COLUMNS = [
  ["crps_bps", "CRPS", (v) => v.toFixed(1), "Mean CRPS in basis points; lower is better"],
  ["skill", "skill", (v) => v.toFixed(2), "Against the last value; above 0 is better"],
  ["direction", "dir.", (v) => `${Math.round(100 * v)} %`, "Share of origins with the right direction"],
  ["coverage_90", "in 90 %", (v) => `${Math.round(100 * v)} %`, "Share of closes inside the 90 % band; 90 % is best"],
];

export function scores(state) {
  if (!state.scores) return fill("scores", empty(state.refusals.scores ? "They come with the first finished night." : "…"));
  const board = state.scores.leaderboard;
  const own = board.filter((one) => one.series === state.key.symbol);
  const rows = own.length ? own : board.filter((one) => one.series === "all");
  const head = h("tr", {}, h("th", { scope: "col" }, "model"), ...COLUMNS.map(([, name, , title]) => h("th", { scope: "col", title }, name)));
  const body = rows.map((one) =>
    h("tr", { class: one.model === "challenger" ? "ours" : "" }, h("td", {}, one.model.replaceAll("_", " ")), ...COLUMNS.map(([key, , show]) => (one[key] == null ? h("td", { class: "empty" }, "–") : h("td", {}, show(one[key]))))),
  );
  const about = `Walk-forward over the test range, ${own.length ? "this series" : "all series"}, ${say.count(rows[0]?.origins ?? 0)} origins`;
  const live = state.scores.live.find((one) => one.symbol === state.key.symbol && one.interval === state.key.interval);
  fill("scores", h("div", { class: "table" }, h("table", {}, h("thead", {}, head), h("tbody", {}, ...body))), h("p", { class: "sub" }, about), ...since(live));
}

// How the forecasts on record did on what came.
function since(live) {
  if (!live?.scored) return [row("Live", live?.waiting ? `${say.count(live.waiting)} waiting for their candles` : "no forecast on record yet")];
  return [
    row("Live forecasts scored", `${say.count(live.scored)}${live.waiting ? `, ${say.count(live.waiting)} waiting` : ""}`),
    row(`Live CRPS${live.estimator === "quantiles" ? " (of quantiles)" : ""}, last value's`, `${live.crps_bps.toFixed(1)}, ${live.last_value_bps.toFixed(1)}`),
    row("Live skill", live.skill == null ? "–" : skillText(live)),
    row("Live in 90 %", say.plain(live.coverage_90)),
  ];
}

// The words follow the interval, never the skill alone.
function skillText(live) {
  if (live.skill_low == null) return `${live.skill.toFixed(2)}, too few origins for an interval`;
  return `${live.skill.toFixed(2)}, 90 % interval ${live.skill_low.toFixed(2)} to ${live.skill_high.toFixed(2)}: ${live.against}`;
}

export function data(state) {
  const { held, pulse, local } = state;
  if (!held || !pulse) return fill("data", empty("…"));
  const fresh = pulse.behind === 0 ? "up to date" : `${say.count(pulse.behind)} candle${pulse.behind > 1 ? "s" : ""} behind`;
  const open = held.open_holes ? `${say.count(held.open_holes)} open` : "none open";
  const known = held.outages ? `, ${say.count(held.outages)} outage${held.outages > 1 ? "s" : ""}` : "";
  const holes = held.holes.slice(-3).reverse().map((one) => h("li", {}, `${say.count(one.candles)} missing from ${say.moment(one.start_ms, local)}: ${one.name ?? one.status}`));
  fill(
    "data",
    row("Newest close", say.moment(pulse.last_ms + state.step, local)),
    row("Freshness", fresh),
    row("Candles", `${say.count(held.rows)} since ${say.month(held.first_ms, false)}`),
    row("Holes", open + known),
    row("Source", held.source.split(" ")[0]),
    holes.length ? h("ul", {}, ...holes) : null,
  );
}

export function model(state) {
  const { forecast, problem } = state;
  if (forecast?.model === "references") return fill("model", ...references(forecast), problem ? h("p", { class: "sub" }, ...sentence(problem)) : null);
  const one = state.models.find((known) => known.recipe === forecast?.recipe) ?? state.models.find((known) => known.interval === state.key.interval);
  if (!one) return fill("model", empty(problem ?? "No model yet: `kronos run` trains one, judges it and lets it serve if it is better."));
  const trained = one.series.includes(state.key.symbol);
  fill(
    "model",
    row("Predictor", one.predictor),
    row("Serves since", say.moment(Date.parse(one.since), state.local)),
    row("Recipe", one.recipe),
    row("Sees, forecasts", `${one.lookback}, ${one.horizon} candles of ${one.interval}`),
    row("Trained on", trained ? "this series" + (one.series.length > 1 ? ` and ${one.series.length - 1} more` : "") : "other series"),
    forecast ? row("Paths", `${say.count(forecast.samples)}: ${shares(forecast.weights)}`) : null,
    h("p", { class: "sub" }, `In the pool ${one.adds}.`),
    forecast?.postprocessing.length ? h("ul", {}, ...forecast.postprocessing.map((part) => h("li", {}, part))) : null,
    problem ? h("p", { class: "sub" }, ...sentence(problem)) : null,
  );
}

// What is served where no network has earned a place.
const references = (forecast) => [
  row("Model", "references"),
  forecast.recipe ? row("Recipe", forecast.recipe) : null,
  row("Forecasts", `${forecast.horizon} candles of ${forecast.interval}`),
  row("Paths", `${say.count(forecast.samples)}: ${shares(forecast.weights)}`),
  h("p", { class: "sub" }, ...sentence(`Forecast ${forecast.adds}. \`kronos run\` trains one and judges it.`)),
];

const shares = (weights) =>
  Object.entries(weights)
    .filter(([, share]) => share > 0)
    .map(([name, share]) => `${name} ${Math.round(100 * share)} %`)
    .join(", ");
