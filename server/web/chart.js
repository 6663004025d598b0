// chart.js - small line and bar pictures as SVG: enough for one curve with its axes, readable without colour.
import { h } from './dom.js';

function niceStep(span, ticks) {
  const raw = span / Math.max(1, ticks);
  const power = 10 ** Math.floor(Math.log10(raw));
  const unit = raw / power;
  return (unit <= 1 ? 1 : unit <= 2 ? 2 : unit <= 5 ? 5 : 10) * power;
}

function ticksOf(lo, hi, n) {
  const step = niceStep(hi - lo || 1, n);
  const out = [];
  for (let v = Math.ceil(lo / step) * step; v <= hi + step * 1e-9; v += step) out.push(Number(v.toPrecision(12)));
  return out;
}

/** points: [[x, y], ...]. opts: {x, y: axis titles, label, reverseX}. */
export function lineChart(points, opts) {
  const width = 560, height = 200, left = 48, right = 12, top = 12, bottom = 38;
  const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]).filter(Number.isFinite);
  if (points.length === 0 || ys.length === 0) return h('p', { class: 'muted' }, 'No points yet.');
  const x0 = Math.min(...xs), x1 = Math.max(...xs);
  let y0 = Math.min(...ys), y1 = Math.max(...ys);
  if (y0 === y1) { y0 -= 1; y1 += 1; }
  const pad = (y1 - y0) * 0.08;
  y0 -= pad; y1 += pad;
  const across = width - left - right, down = height - top - bottom;
  const sx = (x) => left + (x1 === x0 ? 0.5 : opts.reverseX ? (x1 - x) / (x1 - x0) : (x - x0) / (x1 - x0)) * across;
  const sy = (y) => top + (1 - (y - y0) / (y1 - y0)) * down;
  const sorted = points.filter((p) => Number.isFinite(p[1])).sort((a, b) => a[0] - b[0]);
  return h('svg', { class: 'chart', viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': opts.label },
    ticksOf(y0, y1, 4).map((v) => h('g', {},
      h('line', { class: 'grid', x1: left, x2: width - right, y1: sy(v), y2: sy(v) }),
      h('text', { x: left - 6, y: sy(v) + 4, 'text-anchor': 'end' }, String(v)))),
    ticksOf(x0, x1, 6).map((v) => h('text', { x: sx(v), y: height - 22, 'text-anchor': 'middle' }, String(v))),
    h('text', { class: 'title', x: left + across / 2, y: height - 5, 'text-anchor': 'middle' }, opts.x),
    h('text', { class: 'title', x: 4, y: top + 2, 'dominant-baseline': 'hanging' }, opts.y),
    h('polyline', { class: 'curve', points: sorted.map((p) => `${sx(p[0])},${sy(p[1])}`).join(' ') }),
    sorted.map((p) => h('circle', { class: 'point', cx: sx(p[0]), cy: sy(p[1]), r: 2.5 },
      h('title', {}, `${opts.x} ${p[0]}: ${p[1].toFixed(2)}`))));
}
