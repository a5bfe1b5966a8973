// Numbers and times as people read them.

const WEEK_MS = 7 * 86_400_000;

export function price(value) {
  if (value == null) return "–";
  const size = Math.abs(value);
  const digits = size >= 1000 ? 2 : size >= 10 ? 3 : size >= 1 ? 4 : size > 0 ? Math.min(20, 4 - Math.floor(Math.log10(size))) : 2;
  return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export function percent(share, digits = 2) {
  if (share == null) return "–";
  const value = 100 * share;
  const sign = value > 0 ? "+" : value < 0 ? "−" : "";
  return `${sign}${Math.abs(value).toFixed(digits)}\u00a0%`;
}

export const plain = (share) => (share == null ? "–" : `${Math.round(100 * share)}\u00a0%`);

export function amount(value) {
  if (value == null) return "–";
  return value.toLocaleString("en-US", { notation: value >= 10_000 ? "compact" : "standard", maximumFractionDigits: 2 });
}

export const count = (value) => value.toLocaleString("en-US");

export function span(ms) {
  const minutes = Math.round(Math.max(0, ms) / 60_000);
  if (minutes < 1) return "less than a minute";
  if (minutes < 120) return `${minutes} min`;
  if (minutes < 48 * 60) return `${Math.round(minutes / 60)} h`;
  const days = Math.round(minutes / 1440);
  return days < 730 ? `${days} days` : `${(days / 365.25).toFixed(1)} years`;
}

export function clock(ms) {
  const seconds = Math.max(0, Math.ceil(ms / 1000));
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor((seconds % 3600) / 60), seconds % 60];
  const two = (n) => String(n).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

const formats = new Map();
function formatted(ms, local, options) {
  const key = `${local}${JSON.stringify(options)}`;
  if (!formats.has(key)) {
    formats.set(key, new Intl.DateTimeFormat("en-GB", { ...options, hourCycle: "h23", ...(local ? {} : { timeZone: "UTC" }) }));
  }
  return formats.get(key).format(ms);
}

const DAY = { day: "numeric", month: "short" };
const TIME = { hour: "2-digit", minute: "2-digit" };

export const hour = (ms, local) => formatted(ms, local, TIME);
export const day = (ms, local) => formatted(ms, local, DAY);
export const month = (ms, local) => formatted(ms, local, { month: "short", year: "numeric" });

// 4 May 2024, 17:00 UTC
export function moment(ms, local) {
  const now = Date.now();
  const year = Math.abs(now - ms) > 20 * WEEK_MS ? { year: "numeric" } : {};
  return `${formatted(ms, local, { ...DAY, ...year })}, ${hour(ms, local)} ${local ? "local" : "UTC"}`;
}

// The one first, then the other: 17:00 UTC (19:00 local)
export function both(ms, local) {
  return `${moment(ms, local)} (${hour(ms, !local)} ${local ? "UTC" : "local"})`;
}

export const MARKETS = { spot: "Spot", um: "USD-M futures" };
