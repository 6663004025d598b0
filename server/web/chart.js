// chart.js - small line pictures as SVG: a curve or two with their axes, readable without colour.
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

/** series: [{label, points: [[x, y], ...]}, ...], the second one dashed. opts: {x, y: axis titles, label, reverseX, dots: false for none}. */
export function lineChart(series, opts) {
  const width = 560, height = 200, left = 52, right = 12, top = 16, bottom = 38;
  const all = series.flatMap((s) => s.points).filter((p) => Number.isFinite(p[1]));
  if (all.length === 0) return h('p', { class: 'muted' }, 'No points yet.');
  let x0 = Infinity, x1 = -Infinity, y0 = Infinity, y1 = -Infinity;
  for (const [x, y] of all) { x0 = Math.min(x0, x); x1 = Math.max(x1, x); y0 = Math.min(y0, y); y1 = Math.max(y1, y); }
  if (y1 - y0 <= 1e-9 * Math.max(Math.abs(y0), Math.abs(y1))) { y0 -= 1; y1 += 1; }
  const pad = (y1 - y0) * 0.08;
  y0 -= pad; y1 += pad;
  const across = width - left - right, down = height - top - bottom;
  const sx = (x) => left + (x1 === x0 ? 0.5 : opts.reverseX ? (x1 - x) / (x1 - x0) : (x - x0) / (x1 - x0)) * across;
  const sy = (y) => top + (1 - (y - y0) / (y1 - y0)) * down;
  return h('svg', { class: 'chart', viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': opts.label },
    ticksOf(y0, y1, 4).map((v) => h('g', {},
      h('line', { class: 'grid', x1: left, x2: width - right, y1: sy(v), y2: sy(v) }),
      h('text', { x: left - 6, y: sy(v) + 4, 'text-anchor': 'end' }, String(v)))),
    ticksOf(x0, x1, 6).map((v) => h('text', { x: sx(v), y: height - 22, 'text-anchor': 'middle' }, String(v))),
    h('text', { class: 'title', x: left + across / 2, y: height - 5, 'text-anchor': 'middle' }, opts.x),
    h('text', { class: 'title', x: 4, y: 2, 'dominant-baseline': 'hanging' }, opts.y),
    series.length > 1 && series.map((s, k) => h('g', {},
      h('line', { class: `curve curve-${k}`, x1: width - 190 + 90 * k, x2: width - 166 + 90 * k, y1: 8, y2: 8 }),
      h('text', { x: width - 160 + 90 * k, y: 12 }, s.label))),
    series.map((s, k) => {
      const sorted = s.points.filter((p) => Number.isFinite(p[1])).sort((a, b) => a[0] - b[0]);
      return h('g', {},
        h('polyline', { class: `curve curve-${k}`, points: sorted.map((p) => `${sx(p[0])},${sy(p[1])}`).join(' ') }),
        opts.dots !== false && sorted.map((p) => h('circle', { class: `point point-${k}`, cx: sx(p[0]), cy: sy(p[1]), r: 2.5 },
          h('title', {}, `${series.length > 1 ? `${s.label}, ` : ''}${opts.x} ${p[0]}: ${Number(p[1].toPrecision(4))}`))));
    }));
}
