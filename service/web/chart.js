// Candles, volume and fans on a canvas. Time runs evenly, so a hole in the data is a hole in the picture.

import * as say from "./format.js";

const AXIS = 74; // px on the right for prices
const FOOT = 24; // px below for times
const TOP = 10;
const TAG = 21; // height of a price's tag
const VOLUME = 0.17; // share of the height
const FEWEST = 12; // candles in view

const STEPS = [
  1, 5, 15, 30, 60, 180, 360, 720, 1440, 2 * 1440, 4 * 1440, 7 * 1440, 14 * 1440, 30 * 1440, 91 * 1440, 182 * 1440, 365 * 1440,
].map((minutes) => minutes * 60_000);

export class Chart {
  constructor(canvas, { onHover, onOlder }) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.onHover = onHover;
    this.onOlder = onOlder;
    this.candles = [];
    this.view = null; // [ms, ms]
    this.cursor = null; // {ms, y}
    this.local = false;
    this.shows = { past: true, paths: false };
    this.colours();
    new ResizeObserver(() => this.resize()).observe(canvas);
    this.listen();
  }

  colours() {
    const style = getComputedStyle(document.documentElement);
    const names = ["bg", "panel", "ink", "soft", "line", "grid", "up", "down", "fan", "past"];
    this.colour = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    this.draw();
  }

  // Everything at once; `step` is the candle's length in ms. `fresh` shows the newest again.
  set({ candles, step, fan, past, price, paths, fresh }) {
    const follows = this.atEnd();
    Object.assign(this, { candles, step, fan, past, price, paths });
    if (fresh || !this.view) this.fit();
    else if (follows) this.follow();
    this.draw();
  }

  get last() {
    return this.candles.at(-1);
  }

  get end() {
    const shown = this.fan ? this.fan.at(-1).ms : 0;
    return Math.max(this.last?.ms ?? 0, shown) + 2.2 * this.step;
  }

  atEnd() {
    return this.view && this.candles.length && this.view[1] >= this.lastEnd - this.step;
  }

  follow() {
    const moved = this.end - this.view[1];
    if (moved > 0) this.view = this.view.map((ms) => ms + moved);
    this.lastEnd = this.end;
  }

  fit() {
    if (!this.candles.length) return;
    const slots = Math.max(36, Math.round((this.width - AXIS) / 9.5));
    const first = Math.max(this.end - slots * this.step, this.candles[0].ms - this.step);
    this.view = [Math.min(first, this.end - FEWEST * this.step), this.end];
    this.lastEnd = this.end;
    this.draw();
  }

  zoom(factor, at = this.view[1]) {
    if (!this.view) return;
    const [from, to] = this.view;
    const widest = Math.max(this.end - this.candles[0].ms, FEWEST * this.step) * 1.05;
    const length = Math.min(Math.max((to - from) * factor, FEWEST * this.step), widest);
    const share = (at - from) / (to - from);
    this.move(at - share * length, length);
  }

  move(from, length = this.view[1] - this.view[0]) {
    const latest = this.end + length * 0.4 - length;
    const first = Math.min(from, Math.max(latest, this.end - length));
    this.view = [first, first + length];
    if (first < this.candles[0].ms + 20 * this.step) this.onOlder();
    this.draw();
  }

  resize() {
    const box = this.canvas.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    const before = this.width;
    [this.width, this.height] = [box.width, box.height];
    this.canvas.width = Math.round(box.width * ratio);
    this.canvas.height = Math.round(box.height * ratio);
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (before !== undefined && Math.abs(before - this.width) > 1 && this.atEnd()) this.fit();
    this.draw();
  }

  x(ms) {
    return ((ms - this.view[0]) / (this.view[1] - this.view[0])) * (this.width - AXIS);
  }

  time(x) {
    return this.view[0] + (x / (this.width - AXIS)) * (this.view[1] - this.view[0]);
  }

  y(value) {
    return TOP + ((this.high - value) / (this.high - this.low)) * (this.bottom - TOP);
  }

  // Where a candle is centred.
  mid(ms) {
    return this.x(ms + this.step / 2);
  }

  visible(points) {
    return points.filter((one) => one.ms + this.step > this.view[0] && one.ms < this.view[1]);
  }

  scale() {
    const shown = this.visible(this.candles);
    const values = shown.flatMap((one) => [one.low, one.high]);
    for (const fan of [this.fan, this.shows.past ? this.past?.fan : null]) {
      if (fan) values.push(...this.visible(fan).flatMap((one) => [one.q["0.05"], one.q["0.95"]]));
    }
    if (this.price && this.visible([{ ms: this.last.ms }]).length) values.push(this.price);
    if (!values.length) values.push(this.last.low, this.last.high);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const room = (high - low || high * 0.01) * 0.07;
    [this.low, this.high] = [low - room, high + room];
    this.floor = this.height - FOOT;
    this.bottom = this.floor - (this.floor - TOP) * VOLUME - 8;
    return shown;
  }

  draw() {
    if (this.queued) return;
    this.queued = requestAnimationFrame(() => {
      this.queued = null;
      this.paint();
    });
  }

  paint() {
    const { context } = this;
    if (!this.width) return;
    context.clearRect(0, 0, this.width, this.height);
    if (!this.candles.length || !this.view) return;
    const shown = this.scale();
    context.font = `11px ${getComputedStyle(this.canvas).fontFamily}`;
    context.lineJoin = "round";
    this.axes();
    context.save();
    context.beginPath();
    context.rect(0, 0, this.width - AXIS, this.floor);
    context.clip();
    this.volumes(shown);
    if (this.past && this.shows.past) this.ghost(this.past);
    if (this.fan) this.bands(this.fan, this.colour.fan);
    this.sticks(shown);
    if (this.fan) this.median(this.fan);
    context.restore();
    this.tags();
    if (this.cursor) this.cross();
  }

  axes() {
    const { context, colour } = this;
    context.strokeStyle = colour.grid;
    context.fillStyle = colour.soft;
    context.lineWidth = 1;
    context.textBaseline = "middle";
    context.textAlign = "left";
    const marks = ticks(this.low, this.high, Math.max(3, Math.round(this.bottom / 64)));
    const whole = marks.every((value) => Number.isInteger(value));
    for (const value of marks) {
      const y = Math.round(this.y(value)) + 0.5;
      if (y < TOP || y > this.bottom) continue;
      line(context, 0, y, this.width - AXIS, y);
      if (this.price && Math.abs(y - this.y(this.price)) < TAG - 4) continue; // under its tag
      context.fillText(whole ? say.count(value) : say.price(value), this.width - AXIS + 8, y);
    }
    context.textAlign = "center";
    const room = (this.view[1] - this.view[0]) / Math.max(2, (this.width - AXIS) / 92);
    const step = Math.max(STEPS.find((one) => one >= room) ?? STEPS.at(-1), this.step);
    const shift = this.local ? new Date(this.view[0]).getTimezoneOffset() * 60_000 : 0;
    for (let ms = Math.ceil((this.view[0] - shift) / step) * step + shift; ms < this.view[1]; ms += step) {
      const x = Math.round(this.mid(ms)) + 0.5;
      if (x < 22 || x > this.width - AXIS - 18) continue;
      line(context, x, TOP, x, this.floor);
      const midnight = (ms - shift) % 86_400_000 === 0;
      const text = step >= 28 * 86_400_000 ? say.month(ms, this.local) : midnight || step >= 86_400_000 ? say.day(ms, this.local) : say.hour(ms, this.local);
      context.fillStyle = midnight ? colour.ink : colour.soft;
      context.fillText(text, x, this.height - FOOT / 2 + 1);
    }
    context.strokeStyle = colour.line;
    line(context, 0, this.floor + 0.5, this.width, this.floor + 0.5);
  }

  volumes(shown) {
    const { context } = this;
    const most = Math.max(...shown.map((one) => one.volume), 1e-12);
    const height = this.floor - this.bottom - 8;
    const width = this.body();
    context.globalAlpha = 0.33;
    for (const one of shown) {
      const tall = Math.max(1, (one.volume / most) * height);
      context.fillStyle = one.close >= one.open ? this.colour.up : this.colour.down;
      context.fillRect(this.mid(one.ms) - width / 2, this.floor - tall, width, tall);
    }
    context.globalAlpha = 1;
  }

  body() {
    const room = this.x(this.view[0] + this.step);
    return room > 4 ? Math.max(2, Math.min(Math.floor(room * 0.66), 22)) : Math.max(1, room * 0.8);
  }

  // Up is hollow, down is filled; the forming candle is paler.
  sticks(shown) {
    const { context, colour } = this;
    const width = this.body();
    for (const one of shown) {
      const up = one.close >= one.open;
      const x = width > 3 ? Math.round(this.mid(one.ms)) + 0.5 : this.mid(one.ms);
      const [top, base] = [this.y(Math.max(one.open, one.close)), this.y(Math.min(one.open, one.close))];
      context.globalAlpha = one.forming ? 0.6 : 1;
      context.strokeStyle = context.fillStyle = up ? colour.up : colour.down;
      context.lineWidth = width > 5 ? 1.3 : 1;
      line(context, x, this.y(one.high), x, top);
      line(context, x, base, x, this.y(one.low));
      const tall = Math.max(1, base - top);
      if (up && width > 3) {
        context.fillStyle = colour.panel;
        context.fillRect(x - width / 2, top, width, tall);
        context.strokeRect(x - width / 2 + 0.5, top, width - 1, tall);
      } else context.fillRect(x - width / 2, top, width, tall);
    }
    context.globalAlpha = 1;
  }

  bands(fan, paint) {
    const { context } = this;
    context.fillStyle = paint;
    for (const [low, high, alpha] of [["0.05", "0.95", 0.14], ["0.1", "0.9", 0.14], ["0.25", "0.75", 0.2]]) {
      context.globalAlpha = alpha;
      this.ribbon(fan, low, high);
      context.fill();
    }
    if (this.shows.paths && this.paths) {
      context.strokeStyle = paint;
      context.lineWidth = 1;
      context.globalAlpha = 0.45;
      for (const path of this.paths) this.trace([fan[0], ...fan.slice(1).map((one, i) => ({ ms: one.ms, value: path[i] }))]);
    }
    context.globalAlpha = 1;
  }

  ribbon(fan, low, high) {
    const { context } = this;
    context.beginPath();
    for (const one of fan) context.lineTo(this.mid(one.ms), this.y(one.q[high]));
    for (const one of [...fan].reverse()) context.lineTo(this.mid(one.ms), this.y(one.q[low]));
    context.closePath();
  }

  trace(points) {
    const { context } = this;
    context.beginPath();
    for (const one of points) context.lineTo(this.mid(one.ms), this.y(one.value ?? one.q["0.5"]));
    context.stroke();
  }

  median(fan) {
    const { context, colour } = this;
    context.strokeStyle = colour.panel;
    context.lineWidth = 5;
    context.globalAlpha = 0.7;
    this.trace(fan);
    context.globalAlpha = 1;
    context.strokeStyle = colour.fan;
    context.lineWidth = 2.4;
    this.trace(fan);
  }

  // What was said before: edges and median, dashed, so that the candles over it stay readable.
  ghost({ fan }) {
    const { context, colour } = this;
    context.fillStyle = context.strokeStyle = colour.past;
    context.globalAlpha = 0.13;
    this.ribbon(fan, "0.05", "0.95");
    context.fill();
    context.globalAlpha = 0.85;
    context.lineWidth = 1;
    context.setLineDash([2, 3]);
    for (const level of ["0.05", "0.95"]) this.trace(fan.map((one) => ({ ms: one.ms, value: one.q[level] })));
    context.lineWidth = 1.8;
    context.setLineDash([6, 4]);
    this.trace(fan);
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  tags() {
    const { context, colour } = this;
    const edge = this.width - AXIS;
    if (this.fan) {
      const x = Math.round(this.x(this.fan[0].ms + this.step)) + 0.5;
      if (x > 30 && x < edge) {
        context.strokeStyle = colour.soft;
        context.lineWidth = 1;
        context.setLineDash([1, 4]);
        line(context, x, TOP, x, this.floor);
        context.setLineDash([]);
      }
      const end = this.fan.at(-1);
      const apart = this.price ? this.y(end.q["0.5"]) - this.y(this.price) : TAG;
      const room = Math.abs(apart) < TAG ? Math.sign(apart || 1) * TAG - apart : 0; // not under the price
      if (this.x(end.ms) < edge) this.tag(this.y(end.q["0.5"]) + room, say.price(end.q["0.5"]), colour.fan);
    }
    if (this.price) {
      const y = Math.round(this.y(this.price)) + 0.5;
      context.strokeStyle = colour.ink;
      context.globalAlpha = 0.55;
      context.setLineDash([3, 3]);
      line(context, 0, y, edge, y);
      context.setLineDash([]);
      context.globalAlpha = 1;
      this.tag(y, say.price(this.price), colour.ink);
    }
  }

  tag(y, text, paint) {
    const { context } = this;
    if (y < TOP - 4 || y > this.floor) return;
    this.box(this.width - AXIS + 2, y - 9.5, AXIS - 6, 19, paint);
    context.textAlign = "left";
    context.fillText(text, this.width - AXIS + 8, y + 0.5);
  }

  // A box for a text in the panel's colour.
  box(x, y, width, height, paint) {
    const { context } = this;
    context.fillStyle = paint;
    context.beginPath();
    context.roundRect(x, y, width, height, 4);
    context.fill();
    context.fillStyle = this.colour.panel;
  }

  cross() {
    const { context, colour } = this;
    const slot = this.slot(this.cursor.ms);
    const x = Math.round(this.mid(slot.ms)) + 0.5;
    const edge = this.width - AXIS;
    if (x < 0 || x > edge) return;
    context.strokeStyle = colour.soft;
    context.lineWidth = 1;
    context.setLineDash([4, 4]);
    line(context, x, TOP, x, this.floor);
    const inside = this.cursor.y != null && this.cursor.y > TOP && this.cursor.y < this.bottom;
    if (inside) line(context, 0, this.cursor.y, edge, this.cursor.y);
    context.setLineDash([]);
    if (inside) this.tag(this.cursor.y, say.price(this.high - ((this.cursor.y - TOP) / (this.bottom - TOP)) * (this.high - this.low)), colour.soft);
    const text = `${say.day(slot.ms, this.local)} ${say.hour(slot.ms, this.local)}`;
    const wide = context.measureText(text).width + 16;
    const left = Math.min(Math.max(x - wide / 2, 0), edge - wide);
    this.box(left, this.floor + 2, wide, 20, colour.soft);
    context.textAlign = "center";
    context.fillText(text, left + wide / 2, this.floor + 12.5);
  }

  // The candle, the forecast and what was said before for the slot that holds a time.
  slot(at) {
    const within = (one) => at >= one.ms && at < one.ms + this.step;
    const candle = this.candles.findLast(within);
    const ahead = this.fan?.slice(1).find(within);
    const before = this.past?.fan.slice(1).find(within);
    const ms = (candle ?? ahead ?? before)?.ms ?? this.last.ms + Math.floor((at - this.last.ms) / this.step) * this.step;
    return { ms, candle, ahead, before };
  }

  point(cursor, spoken = false) {
    this.cursor = cursor;
    this.onHover(cursor ? this.slot(cursor.ms) : null, spoken);
    this.draw();
  }

  listen() {
    const { canvas } = this;
    const touches = new Map();
    let drag = null;
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return { x: event.clientX - box.left, y: event.clientY - box.top };
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (!this.view) return;
      touches.set(event.pointerId, place(event));
      canvas.setPointerCapture(event.pointerId);
      drag = { x: place(event).x, view: [...this.view] };
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.view) return;
      const at = place(event);
      if (touches.has(event.pointerId)) {
        if (touches.size === 2) {
          const [a, b] = [...touches.values()];
          const before = Math.abs(a.x - b.x);
          touches.set(event.pointerId, at);
          const [c, d] = [...touches.values()];
          const after = Math.abs(c.x - d.x);
          if (before > 10 && after > 10) this.zoom(before / after, this.time((c.x + d.x) / 2));
          return;
        }
        touches.set(event.pointerId, at);
        const length = drag.view[1] - drag.view[0];
        if (Math.abs(at.x - drag.x) > 3) this.move(drag.view[0] - ((at.x - drag.x) / (this.width - AXIS)) * length);
      }
      if (at.x < this.width - AXIS) this.point({ ms: this.time(at.x), y: at.y });
    });
    const lift = (event) => touches.delete(event.pointerId);
    canvas.addEventListener("pointerup", lift);
    canvas.addEventListener("pointercancel", lift);
    canvas.addEventListener("pointerleave", () => this.point(null));
    canvas.addEventListener("blur", () => this.point(null));
    canvas.addEventListener("wheel", (event) => {
      if (!this.view) return;
      event.preventDefault();
      if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
        this.move(this.view[0] + (event.deltaX / (this.width - AXIS)) * (this.view[1] - this.view[0]));
      } else this.zoom(Math.exp(Math.sign(event.deltaY) * 0.12), this.time(Math.min(place(event).x, this.width - AXIS)));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    if (!this.view) return;
    const now = this.cursor?.ms ?? this.last.ms + this.step / 2;
    const hop = event.shiftKey ? 10 : 1;
    const acts = {
      ArrowLeft: () => this.step_to(now - hop * this.step),
      ArrowRight: () => this.step_to(this.cursor ? now + hop * this.step : now),
      "+": () => this.zoom(0.8), "=": () => this.zoom(0.8), "-": () => this.zoom(1.25),
      End: () => (this.fit(), this.point(null)), Home: () => this.move(this.candles[0].ms), Escape: () => this.point(null),
    };
    if (!acts[event.key]) return;
    event.preventDefault();
    acts[event.key]();
  }

  step_to(ms) {
    const last = this.fan?.at(-1).ms ?? this.last.ms;
    const at = Math.min(Math.max(ms, this.candles[0].ms), last + this.step / 2);
    if (at < this.view[0] || at > this.view[1]) this.move(at - (this.view[1] - this.view[0]) / 2);
    this.point({ ms: at, y: null }, true);
  }
}

function line(context, x1, y1, x2, y2) {
  context.beginPath();
  context.moveTo(x1, y1);
  context.lineTo(x2, y2);
  context.stroke();
}

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) found.push(value);
  return found;
}
