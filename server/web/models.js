// models.js - what has been uploaded or made here, and the place to drop a new file.
import { get, remove, upload } from './api.js';
import { ago, bytes, count, h, replace, toast } from './dom.js';

const WORDS = {
  models: ['Drop a model here, or ', 'A tar or zip of a diffusers folder, an ONNX file, a PyTorch checkpoint (.pt, .pth, .ckpt), or a quantd bundle (.safetensors)'],
  datasets: ['Drop a dataset here, or ', 'CIFAR binary records, a tar or zip with IDX files or with a folder of pictures for each class, or safetensors'],
};

/** A drop zone with progress; calls done(row) after a good upload. kind: 'models' or 'datasets'. */
export function dropZone(kind, done) {
  const input = h('input', { type: 'file', id: `file-${kind}`, class: 'visually-hidden', onchange: () => input.files[0] && take(input.files[0]) });
  const words = h('span', {}, WORDS[kind][0], h('label', { for: `file-${kind}`, class: 'link' }, 'choose a file'));
  const hint = h('small', { class: 'muted' }, WORDS[kind][1]);
  const progress = h('progress', { max: 1, value: 0, hidden: true, 'aria-label': 'upload' });
  const error = h('p', { class: 'problem', hidden: true, role: 'alert' });
  const zone = h('div', {
    class: 'drop',
    ondragover: (e) => { e.preventDefault(); zone.classList.add('over'); },
    ondragleave: () => zone.classList.remove('over'),
    ondrop: (e) => { e.preventDefault(); zone.classList.remove('over'); if (e.dataTransfer.files[0]) take(e.dataTransfer.files[0]); },
  }, input, words, hint, progress, error);

  async function take(file) {
    error.hidden = true;
    progress.hidden = false;
    progress.value = 0;
    const name = file.name.replace(/(\.tar)?\.[^.]+$/, '').replace(/[^\w.-]+/g, '-').slice(0, 60) || kind.slice(0, -1);
    try {
      done(await upload(kind, name, file, (loaded, total) => { progress.value = loaded / total; }));
    } catch (e) {
      error.hidden = false;
      error.textContent = `${file.name}: ${e.message}`;
    } finally { progress.hidden = true; input.value = ''; }
  }
  return zone;
}

export function describe(m) {
  const s = m.summary || {};
  return [s.class, s.parameters && `${count(s.parameters)} parameters`, s.weight_bits && s.activation_bits && `W${s.weight_bits}A${s.activation_bits}`]
    .filter(Boolean).join(' · ') || m.format;
}

export function modelsPage(main) {
  const body = h('tbody');
  let gone = false;
  async function load() {
    try {
      const list = await get('/v1/models?limit=100');
      if (gone) return;
      replace(body, list.data.map((m) => h('tr', {},
        h('td', {}, h('strong', {}, m.name || 'unnamed'), h('br'), h('span', { class: 'mono muted' }, m.id)),
        h('td', {}, describe(m), m.job_id ? h('div', {}, 'made by ', h('a', { href: `#/jobs/${m.job_id}` }, 'this job')) : null),
        h('td', { class: 'right nowrap' }, bytes(m.size_bytes)),
        h('td', { class: 'muted nowrap' }, ago(m.created_at)),
        h('td', { class: 'right nowrap' },
          h('a', { class: 'button', href: `#/new?model=${m.id}` }, m.format !== 'bundle' ? 'Quantize' : m.role === 'denoiser' ? 'Sample' : 'Evaluate'), ' ',
          h('a', { class: 'button', href: `/v1/models/${m.id}/content`, download: '' }, 'Download'), ' ',
          h('button', { onclick: async () => { try { await remove(`/v1/models/${m.id}`); load(); } catch (e) { toast(e.message); } } }, 'Delete')))));
      if (list.data.length === 0) replace(body, h('tr', {}, h('td', { colspan: 5, class: 'muted' }, 'No models yet.')));
    } catch (e) { toast(e.message); }
  }
  const sets = h('tbody');
  async function loadSets() {
    try {
      const list = await get('/v1/datasets?limit=100');
      if (gone) return;
      replace(sets, list.data.map((x) => h('tr', {},
        h('td', {}, h('strong', {}, x.name || 'unnamed'), h('br'), h('span', { class: 'mono muted' }, x.id)),
        h('td', {}, `${count(x.summary?.count)} images ${x.summary?.channels}×${x.summary?.height}×${x.summary?.width}`,
          x.summary?.classes ? `, ${x.summary.classes} classes` : '', ` · ${x.format}`),
        h('td', { class: 'right nowrap' }, bytes(x.size_bytes)),
        h('td', { class: 'muted nowrap' }, ago(x.created_at)),
        h('td', { class: 'right nowrap' }, h('button', { onclick: async () => { try { await remove(`/v1/datasets/${x.id}`); loadSets(); } catch (e) { toast(e.message); } } }, 'Delete')))));
      if (list.data.length === 0) replace(sets, h('tr', {}, h('td', { colspan: 5, class: 'muted' }, 'No datasets yet.')));
    } catch (e) { toast(e.message); }
  }
  replace(main, h('h1', {}, 'Models'), dropZone('models', (m) => { load(); toast(`${m.name || m.id} is here`); }),
    h('div', { class: 'scroll' }, h('table', {}, h('thead', {}, h('tr', {}, ['Model', 'What', 'Size', 'When', ''].map((t) => h('th', { scope: 'col' }, t)))), body)),
    h('h2', {}, 'Datasets'), dropZone('datasets', (x) => { loadSets(); toast(`${x.name || x.id} is here`); }),
    h('div', { class: 'scroll' }, h('table', {}, h('thead', {}, h('tr', {}, ['Dataset', 'What', 'Size', 'When', ''].map((t) => h('th', { scope: 'col' }, t)))), sets)));
  load();
  loadSets();
  return () => { gone = true; };
}
