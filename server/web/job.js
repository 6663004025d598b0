// job.js - one job: where it is, what it makes, what came out.
import { get, post } from './api.js';
import { lineChart } from './chart.js';
import { ago, bytes, count, fixed, h, pill, replace, seconds, setText, toast } from './dom.js';
import { subscribe } from './live.js';
import { noiseSections } from './noise.js';

const FINAL = new Set(['succeeded', 'failed', 'canceled', 'dead']);
const RETRYABLE = new Set(['failed', 'canceled', 'dead']);

function figure(label, value, note) {
  return h('div', { class: 'figure' }, h('b', {}, value), h('span', {}, label), note && h('small', { class: 'muted' }, note));
}

function took(job) {
  const s = (Date.parse(job.finished_at) - Date.parse(job.started_at)) / 1000;
  return Number.isFinite(s) ? `, after ${seconds(s)}` : '';
}

function figures(job) {
  const r = job.result;
  if (!r) return [];
  const out = [];
  if (r.float_bytes && r.quantized_bytes) out.push(figure('smaller', `${fixed(r.float_bytes / r.quantized_bytes, 2)}×`, `${bytes(r.float_bytes)} to ${bytes(r.quantized_bytes)}`));
  if (r.eps_sqnr_db !== undefined) out.push(figure('eps SQNR', `${fixed(r.eps_sqnr_db, 1)} dB`, 'signal against quantization noise, over time steps'));
  if (r.psnr_db_mean !== undefined) out.push(figure('image PSNR', `${fixed(r.psnr_db_mean, 1)} dB`, `${r.pairs ?? ''} pairs, same seeds`));
  if (r.seconds_per_image_float) out.push(figure('speed', `${fixed(r.seconds_per_image_float / r.seconds_per_image_int8, 2)}×`, `${seconds(r.seconds_per_image_float)} float, ${seconds(r.seconds_per_image_int8)} int8`));
  if (r.seconds_per_image && !r.seconds_per_image_float) out.push(figure('per image', seconds(r.seconds_per_image)));
  if (r.images) out.push(figure('images', count(r.images)));
  const percent = (x) => `${fixed(100 * x, 2)} %`;
  if (r.top1_quantized !== undefined) out.push(figure('top-1', percent(r.top1_quantized), `float ${percent(r.top1_float)}, ${count(r.count)} images`));
  else if (r.top1 !== undefined) out.push(figure('top-1', percent(r.top1), `${count(r.right)} of ${count(r.count)} images`));
  if (r.agreement !== undefined) out.push(figure('agreement', percent(r.agreement), 'same answer as the float network'));
  if (r.images_per_second_float) out.push(figure('speed', `${fixed(r.speedup, 2)}×`, `${fixed(r.images_per_second_float, 0)} images/s float, ${fixed(r.images_per_second_int8, 0)} int8`));
  return out;
}

export function jobPage(main, id) {
  const title = h('h1', {}, 'Job');
  const state = h('span', {}, '');
  const cancel = h('button', { hidden: true, onclick: () => post(`/v1/jobs/${id}/cancel`).catch((e) => toast(e.message)) }, 'Cancel');
  const retry = h('button', { hidden: true, onclick: () => post(`/v1/jobs/${id}/retry`).then((j) => { location.hash = `#/jobs/${j.id}`; }).catch((e) => toast(e.message)) }, 'Try again');
  const origin = h('p', { class: 'muted', hidden: true });
  const bar = h('progress', { max: 1, value: 0, class: 'big', 'aria-label': 'progress' });
  const phase = h('p', { class: 'muted', 'aria-live': 'off' });
  const error = h('p', { class: 'problem', hidden: true });
  const facts = h('div', { class: 'figures' });
  const page = h('p', { hidden: true }, h('a', { class: 'button', href: `/v1/jobs/${id}/artifacts/report.html`, target: '_blank', rel: 'noopener' }, 'Open the report'));
  const noise = noiseSections();
  const gallery = h('div', { class: 'gallery' });
  const pairsNote = h('p', { class: 'muted' });
  const gallerySection = h('section', { hidden: true }, h('h2', {}, 'Images'), pairsNote, gallery);
  const chartBox = h('div', {});
  const chartSection = h('section', { hidden: true }, h('h2', {}, 'Noise by time step'),
    h('p', { class: 'muted' }, 'SQNR of the predicted noise, int8 against float on the same x_t. Higher is better; sampling runs from left to right.'), chartBox);
  const layerBody = h('tbody');
  const layerSection = h('section', { hidden: true }, h('h2', {}, 'Layers'),
    h('p', { class: 'muted' }, 'Noisiest first.'),
    h('div', { class: 'scroll' }, h('table', { class: 'layers' },
      h('thead', {}, h('tr', {}, ['Layer', 'Weights', 'Activations', 'Range', 'SQNR'].map((t) => h('th', { scope: 'col' }, t)))), layerBody)));
  const files = h('tbody');
  const fileSection = h('section', { hidden: true }, h('h2', {}, 'Files'), h('div', { class: 'scroll' }, h('table', {}, files)));
  const log = h('ol', { class: 'log' });
  const params = h('dl', { class: 'params' });
  const images = new Map(); // what it shows -> element: an attempt after a crash draws the same again
  const layers = new Map(); // name -> data
  const sqnr = new Map();   // t -> dB
  let job = null, gone = false, end = null, layerTimer = null, chartTimer = null, read = '';

  function header() {
    if (!job) return;
    setText(title, `${job.kind} · ${job.method ?? job.params?.method ?? ''}`);
    replace(state, pill(job.status));
    cancel.hidden = FINAL.has(job.status);
    retry.hidden = !RETRYABLE.has(job.status);
    origin.hidden = !job.retry_of;
    if (job.retry_of) replace(origin, 'Tries ', h('a', { href: `#/jobs/${job.retry_of}`, class: 'mono' }, job.retry_of), ' again.');
    bar.hidden = job.status !== 'running';
    error.hidden = !job.error;
    if (job.error) error.textContent = `${job.error.code ?? 'error'}: ${job.error.message ?? job.error.detail ?? ''}`;
    const p = job.progress || {};
    bar.value = p.total > 0 ? p.done / p.total : 0;
    const eta = p.eta_s > 0 ? `, about ${seconds(p.eta_s)} left in this phase` : '';
    setText(phase, job.status === 'running' ? `${p.phase ?? ''} ${p.layer ?? ''} ${p.total > 0 ? `${p.done} of ${p.total}` : ''}${eta}`
      : job.status === 'queued' ? (job.position >= 0 ? `Position ${job.position + 1} in the queue.` : 'Waiting.')
        : `${job.status === 'succeeded' ? 'finished' : 'ended'} ${ago(job.finished_at)}${took(job)}`);
    replace(facts, figures(job));
  }

  function picture(src, data) {
    gallerySection.hidden = false;
    const what = `${data.kind ?? ''} ${data.step ?? ''} ${data.index}`;
    let el = images.get(what);
    const words = data.psnr_db !== null && data.psnr_db !== undefined ? `${fixed(data.psnr_db, 1)} dB` : `#${data.index}`;
    if (!el) {
      el = h('figure', {}, h('img', { alt: `image ${data.index}`, loading: 'lazy', width: data.width || undefined, height: data.height || undefined }), h('figcaption', {}));
      images.set(what, el);
      gallery.append(el);
    }
    const img = el.firstChild;
    if (!img.src) img.src = src;
    else if (src.startsWith('blob:')) URL.revokeObjectURL(src);
    setText(el.lastChild, words);
    setText(pairsNote, data.kind === 'pair' ? 'Float on the left, int8 on the right; the same seed for both.' : 'As they finish.');
  }

  function drawLayers() {
    layerTimer = null;
    layerSection.hidden = layers.size === 0;
    const rows = [...layers.values()].sort((a, b) => (a.sqnr_db ?? Infinity) - (b.sqnr_db ?? Infinity));
    replace(layerBody, rows.map((l) => h('tr', {},
      h('td', { class: 'mono' }, l.name),
      h('td', {}, l.bits || l.weight_bits ? `int${l.weight_bits ?? l.bits}` : 'float'),
      h('td', {}, l.activation_bits ? `int${l.activation_bits}` : 'float'),
      h('td', { class: 'nowrap' }, l.lo !== undefined && l.lo !== null ? `${fixed(l.lo, 2)} … ${fixed(l.hi, 2)}` : '–'),
      h('td', { class: 'nowrap' }, l.sqnr_db !== undefined && l.sqnr_db !== null ? `${fixed(l.sqnr_db, 1)} dB` : '–'))));
  }

  function drawChart() {
    chartTimer = null;
    chartSection.hidden = sqnr.size === 0;
    if (sqnr.size) replace(chartBox, lineChart([{ label: 'eps SQNR', points: [...sqnr] }], { x: 'time step t', y: 'dB', label: 'eps SQNR by time step', reverseX: true }));
  }

  async function loadFiles() {
    const list = await get(`/v1/jobs/${id}/artifacts`);
    if (gone) return;
    fileSection.hidden = list.data.length === 0;
    replace(files, list.data.map((a) => h('tr', {},
      h('td', {}, h('a', { href: `/v1/jobs/${id}/artifacts/${encodeURIComponent(a.name)}`, download: a.name }, a.name)),
      h('td', { class: 'right nowrap' }, bytes(a.size_bytes)),
      h('td', {}, h('code', { class: 'nowrap' }, `curl -O ${location.origin}/v1/jobs/${id}/artifacts/${a.name}`),
        h('br'), h('span', { class: 'mono muted nowrap' }, `sha256 ${a.sha256}`)))));
    page.hidden = !list.data.some((a) => a.name === 'report.html');
    const report = list.data.find((a) => a.name === 'report.json');
    if (report && report.sha256 !== read && job?.kind === 'quantize') {
      read = report.sha256; // another attempt may leave another one
      const doc = await get(`/v1/jobs/${id}/artifacts/report.json`);
      if (!gone) noise.report(doc);
    }
  }

  async function reload() {
    job = await get(`/v1/jobs/${id}`);
    if (gone) return;
    replace(params, Object.entries(job.params || {}).filter(([, v]) => v !== '')
      .map(([k, v]) => h('div', {}, h('dt', {}, k.replaceAll('_', ' ')), h('dd', {}, String(v)))));
    if (job.result?.eps_sqnr_by_step) {
      for (const p of job.result.eps_sqnr_by_step) sqnr.set(p.t, p.sqnr_db);
      drawChart();
    }
    noise.job(job);
    header();
    await loadFiles();
  }

  function note(e, text) {
    log.append(h('li', {}, h('time', {}, (e.ts || '').slice(11, 19)), ' ', text));
    while (log.childElementCount > 200) log.firstChild.remove();
  }

  function onEvent(e, frame) {
    const d = e.data || {};
    switch (e.type) {
      case 'progress':
        if (job) { job.progress = d; if (job.status === 'queued') job.status = 'running'; header(); }
        noise.progress(d);
        break;
      case 'metric':
        if (/sqnr/.test(d.name)) {
          sqnr.set(d.step, d.value);
          if (!chartTimer) chartTimer = setTimeout(drawChart, 250);
        }
        noise.metric(d);
        break;
      case 'layer':
        if (d.step !== null && d.step !== undefined) { noise.layer(d); break; }
        layers.set(d.name, d);
        if (!layerTimer) layerTimer = setTimeout(drawLayers, 250);
        break;
      case 'sample':
        // The event and, while it is live, the bytes: whichever comes first is shown. The event waits a little for the bytes.
        if (frame) picture(URL.createObjectURL(frame.blob), d);
        else setTimeout(() => { if (!gone) picture(d.url, d); }, job && FINAL.has(job.status) ? 0 : 300);
        break;
      case 'artifact': note(e, `file ${d.name}`); loadFiles().catch(() => {}); break;
      case 'log': case 'warning': note(e, d.message ?? d.text ?? JSON.stringify(d)); break;
      case 'state': note(e, `state: ${d.status ?? d.state ?? ''}`); reload().catch(() => {}); break;
      case 'end': reload().catch(() => {}); break;
      case 'reset': reload().catch(() => {}); break;
    }
  }

  replace(main,
    h('p', { class: 'crumb' }, h('a', { href: '#/' }, 'Jobs'), ' / ', h('span', { class: 'mono' }, id)),
    h('div', { class: 'bar' }, title, state, h('span', { class: 'grow' }), cancel, retry),
    origin, bar, phase, error, facts, page, gallerySection, chartSection, noise.el, layerSection, fileSection,
    h('section', {}, h('h2', {}, 'Settings'), params),
    h('section', {}, h('h2', {}, 'Log'), log));

  reload().then(() => { if (!gone) end = subscribe(id, 0, onEvent); }).catch((e) => {
    replace(main, h('h1', {}, 'No such job'), h('p', { class: 'problem' }, e.message), h('p', {}, h('a', { href: '#/' }, 'Back to the jobs')));
  });
  return () => {
    gone = true;
    end?.();
    clearTimeout(layerTimer);
    clearTimeout(chartTimer);
    noise.close();
    for (const el of images.values()) if (el.firstChild.src.startsWith('blob:')) URL.revokeObjectURL(el.firstChild.src);
  };
}
