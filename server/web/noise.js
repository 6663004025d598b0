// noise.js - where and when noise comes in: layers by time steps as a map to point at, trajectories, rounding as it is learned.
import { lineChart } from './chart.js';
import { fixed, h, replace, setText } from './dom.js';

// Cividis, which looks the same to every eye: dark is clean, bright is noisy. The same as in report.html.
const SHADES = ['#00224e', '#123570', '#3b496c', '#575d6d', '#707173', '#8a8678', '#a59c74', '#c3b369', '#e1cc55', '#fee838'];
const CELL_W = 17, CELL_H = 14, HEAD = 18, CHAR = 6.1, LABEL_CHARS = 40;

/** Ends of the scale: the fifth percentile and at most the ninety-fifth, and not so far up that a few exact layers make all others
 * look alike: the middle of all figures stays a third of the way. The same as in report.html. */
function scaleOf(rows) {
  const all = [];
  for (const row of rows.values()) for (const db of row.values()) if (Number.isFinite(db)) all.push(db);
  if (all.length === 0) return { noisy: 0, clean: 1 };
  all.sort((a, b) => a - b);
  const skip = Math.floor(all.length / 20), middle = all[Math.floor(all.length / 2)];
  const noisy = Math.floor(all[skip]);
  return { noisy, clean: Math.max(noisy + 1, Math.ceil(Math.min(all[all.length - 1 - skip], noisy + 3 * (middle - noisy)))) };
}

function shadeOf(scale, db) {
  const k = Math.floor((scale.clean - db) / (scale.clean - scale.noisy) * SHADES.length);
  return SHADES[Math.min(Math.max(k, 0), SHADES.length - 1)];
}

function legend(scale) {
  const bar = SHADES.length * 24;
  return h('svg', { class: 'legend', viewBox: `0 0 ${bar + 110} 34`, width: bar + 110, height: 34, role: 'img', 'aria-label': `dark: ${scale.clean} dB or more, bright: ${scale.noisy} dB or less` },
    SHADES.map((fill, k) => h('rect', { fill, x: k * 24, y: 2, width: 24, height: 12 })),
    h('text', { x: 0, y: 28 }, `${scale.clean} dB or more`), h('text', { x: bar, y: 28, 'text-anchor': 'end' }, `${scale.noisy} dB or less`),
    h('rect', { class: 'none', x: bar + 30, y: 2, width: 24, height: 12 }), h('text', { x: bar + 30, y: 28 }, 'no noise'));
}

/** The map: set(layer, t, dB) as figures come (dB null: no noise at all), draw() when it suits. */
function noiseMap() {
  const rows = new Map(); // layer -> Map(t -> dB or null), in the order of the network
  const steps = [];       // falling
  const canvas = h('canvas', { class: 'noise-map', tabindex: '0', role: 'img', 'aria-label': 'Noise by layer and time step. Arrow keys read its cells.' });
  const readout = h('output', { class: 'readout muted', 'aria-live': 'polite' }, 'Point at a cell, or use the arrow keys, to read it.');
  const key = h('div', {});
  let left = 0, chosen = null; // chosen: [row, column]

  function set(layer, t, db) {
    if (!rows.has(layer)) rows.set(layer, new Map());
    rows.get(layer).set(t, db);
    if (!steps.includes(t)) { steps.push(t); steps.sort((a, b) => b - a); }
  }

  function draw() {
    const names = [...rows.keys()];
    left = Math.round(Math.min(LABEL_CHARS, Math.max(...names.map((n) => n.length))) * CHAR) + 8;
    const width = left + steps.length * CELL_W + 12, height = HEAD + names.length * CELL_H + 2, dense = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * dense) || canvas.height !== Math.round(height * dense)) {
      canvas.width = Math.round(width * dense);
      canvas.height = Math.round(height * dense);
      canvas.style.setProperty('width', `${width}px`);
      canvas.style.setProperty('height', `${height}px`);
    }
    const css = getComputedStyle(canvas), c = canvas.getContext('2d'), scale = scaleOf(rows);
    c.setTransform(dense, 0, 0, dense, 0, 0);
    c.clearRect(0, 0, width, height);
    c.font = '10px ui-monospace, monospace';
    c.fillStyle = css.color;
    c.textAlign = 'center';
    for (let k = 0; k < steps.length; k += 2) c.fillText(String(steps[k]), left + (k + 0.5) * CELL_W, HEAD - 5);
    names.forEach((name, r) => {
      const y = HEAD + r * CELL_H;
      c.textAlign = 'right';
      c.fillStyle = css.color;
      c.fillText(name.length > LABEL_CHARS ? `…${name.slice(1 - LABEL_CHARS)}` : name, left - 5, y + CELL_H - 4);
      const row = rows.get(name);
      steps.forEach((t, k) => {
        if (!row.has(t)) return;
        const db = row.get(t);
        c.fillStyle = Number.isFinite(db) ? shadeOf(scale, db) : css.getPropertyValue('--line');
        c.fillRect(left + k * CELL_W, y, CELL_W - 1, CELL_H - 1);
      });
    });
    if (chosen) {
      c.strokeStyle = css.getPropertyValue('--ink');
      c.lineWidth = 2;
      c.strokeRect(left + chosen[1] * CELL_W - 1, HEAD + chosen[0] * CELL_H - 1, CELL_W + 1, CELL_H + 1);
    }
    const words = `${scale.clean} ${scale.noisy}`;
    if (key.dataset.scale !== words) { key.dataset.scale = words; replace(key, legend(scale)); }
  }

  function choose(r, k) {
    if (r < 0 || k < 0 || r >= rows.size || k >= steps.length || (chosen && chosen[0] === r && chosen[1] === k)) return;
    chosen = [r, k];
    const name = [...rows.keys()][r], t = steps[k], db = rows.get(name).get(t);
    setText(readout, `${name}, t ${t}: ${db === undefined ? 'not yet' : Number.isFinite(db) ? `${fixed(db, 1)} dB` : 'no noise'}`);
    draw();
  }
  function pointed(e) {
    const box = canvas.getBoundingClientRect();
    choose(Math.floor((e.clientY - box.top - HEAD) / CELL_H), Math.floor((e.clientX - box.left - left) / CELL_W));
  }
  canvas.addEventListener('pointermove', pointed);
  canvas.addEventListener('pointerdown', pointed);
  canvas.addEventListener('keydown', (e) => {
    const way = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[e.key];
    if (!way) return;
    e.preventDefault();
    if (chosen) choose(chosen[0] + way[0], chosen[1] + way[1]);
    else choose(0, 0);
  });
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const repaint = () => { if (rows.size) draw(); };
  dark.addEventListener('change', repaint);
  return {
    el: h('div', {}, key, h('div', { class: 'scroll' }, canvas), readout), set, draw,
    size: () => rows.size,
    clear: () => { rows.clear(); steps.length = 0; },
    close: () => dark.removeEventListener('change', repaint),
  };
}

/** All of it for one job: feed it events and, at the end, the report. Nothing is shown of jobs that are no quantization of a denoiser. */
export function noiseSections() {
  const map = noiseMap();
  const mapNote = h('p', { class: 'muted' });
  const drift = h('div', { class: 'plots' });
  const driftNote = h('p', { class: 'muted' });
  const round = h('div', {});
  const roundNote = h('p', { class: 'muted', 'aria-live': 'off' });
  const mapSection = h('section', { hidden: true }, h('h2', {}, 'Noise by layer and time step'), mapNote, map.el);
  const driftSection = h('section', { hidden: true }, h('h2', {}, 'Trajectories'), driftNote, drift);
  const roundSection = h('section', { hidden: true }, h('h2', {}, 'Rounding'), roundNote, round);
  const loss = [];  // [iteration, log10 of the loss]
  let block = null; // what is learned now: {layer, done, total}
  let job = null, report = null, timer = null, dirty = new Set();

  function drawMap() {
    map.el.hidden = map.size() === 0;
    setText(mapNote, map.size() ? 'SQNR of what each layer makes, quantized against float, given the same x_t: its own noise and that of all layers before it. Sampling runs from left to right.'
      : job.params.noise_map_steps === 0 ? 'No map was asked for (noise map steps 0).'
        : job.finished_at ? 'The job ended before it was measured.' : 'Measured when the weights are rounded.');
    if (map.size()) map.draw();
  }

  function drawDrift() {
    const walk = report?.trajectory ?? [];
    setText(driftNote, walk.length ? 'Mean and deviation of x_t over all pairs. Where the curves part, noise has become bias or variance.'
      : job.params.pairs === 0 ? 'No pairs were asked for.' : job.finished_at ? 'The job ended before all pairs were drawn.' : 'Known when all pairs are drawn.');
    replace(drift, walk.length ? [['mean', 'mean of x_t'], ['std', 'deviation of x_t']].map(([name, title]) => lineChart(
      [{ label: 'float', points: walk.map((w) => [w.t, w[`${name}_float`]]) }, { label: 'quantized', points: walk.map((w) => [w.t, w[`${name}_quantized`]]) }],
      { x: 'time step t', y: title, label: `${title} by time step`, reverseX: true })) : []);
  }

  function drawRounding() {
    const blocks = report?.reconstruction ?? [];
    roundSection.hidden = !(blocks.length || loss.length || block);
    if (blocks.length) {
      const gain = (b) => (b.mse_nearest > 0 && b.mse_learned > 0 ? 10 * Math.log10(b.mse_nearest / b.mse_learned) : NaN);
      setText(roundNote, 'Learned block by block; the error is of a block’s output on the calibration set.');
      replace(round, h('div', { class: 'scroll' }, h('table', { class: 'layers' },
        h('thead', {}, h('tr', {}, ['Block', 'Kind', 'Iterations', 'Error, nearest', 'Error, learned', 'Less by'].map((t) => h('th', { scope: 'col' }, t)))),
        h('tbody', {}, blocks.map((b) => h('tr', {}, h('td', { class: 'mono' }, b.name), h('td', {}, b.kind), h('td', {}, String(b.iterations)),
          h('td', {}, b.mse_nearest?.toPrecision(4) ?? '–'), h('td', {}, b.mse_learned?.toPrecision(4) ?? '–'),
          h('td', { class: 'nowrap' }, b.note || (b.kept_nearest ? 'no gain, stays nearest' : Number.isFinite(gain(b)) ? `${fixed(gain(b), 2)} dB` : '–'))))))));
      return;
    }
    const last = loss.length ? `, loss ${(10 ** loss[loss.length - 1][1]).toPrecision(4)}` : '';
    setText(roundNote, block ? `${block.layer ?? ''}: iteration ${block.done} of ${block.total} over all blocks${last}` : `Learning${last}`);
    // A long run says more than a curve can show: about 400 of its points.
    const every = Math.ceil(loss.length / 400);
    if (loss.length > 1) replace(round, lineChart([{ label: 'loss', points: loss.filter((_, k) => k % every === 0) }], { x: 'iteration', y: 'log10 of the loss', label: 'loss of reconstruction by iteration', dots: false }));
  }

  const draws = { map: drawMap, drift: drawDrift, round: drawRounding };
  function later(what) {
    dirty.add(what);
    if (!timer && job) timer = setTimeout(() => { timer = null; const wanted = dirty; dirty = new Set(); for (const k of wanted) draws[k](); }, 250);
  }

  return {
    el: [mapSection, driftSection, roundSection],
    job(j) {
      if (j.kind !== 'quantize' || j.params?.noise_map_steps === undefined) return;
      job = j;
      mapSection.hidden = driftSection.hidden = false;
      for (const k of Object.keys(draws)) later(k);
    },
    layer(d) { if (!report) { map.set(d.name, d.step, d.sqnr_db); later('map'); } },
    metric(d) {
      if (d.name !== 'recon_loss' || !(d.value > 0)) return;
      if (d.step === 0) loss.length = 0; // another attempt begins anew
      loss.push([d.step, Math.log10(d.value)]);
      later('round');
    },
    progress(d) { if (d.phase === 'reconstruct') { block = d; later('round'); } },
    report(r) {
      report = r;
      map.clear();
      for (const l of r.noise_map?.layers ?? []) r.noise_map.t.forEach((t, k) => map.set(l.name, t, l.sqnr_db[k]));
      for (const k of Object.keys(draws)) later(k);
    },
    close() { clearTimeout(timer); map.close(); },
  };
}
