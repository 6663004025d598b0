// dom.js - elements from plain calls, and how figures are written.

/** h('a', {href: '/x', class: 'b', onclick: f}, 'text', child, [children]) */
export function h(tag, props = {}, ...children) {
  const svg = ['svg', 'path', 'line', 'circle', 'rect', 'text', 'g', 'polyline', 'title'].includes(tag) && props.svg !== false;
  const el = svg ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const [k, v] of Object.entries(props)) {
    if (v === null || v === undefined || v === false) continue;
    if (k.startsWith('on')) el.addEventListener(k.slice(2), v);
    else if (k === 'style') for (const [p, x] of Object.entries(v)) el.style.setProperty(p, x);
    else if (k in el && !svg && !['list', 'form', 'type', 'role'].includes(k)) el[k === 'class' ? 'className' : k] = v;
    else el.setAttribute(k, v === true ? '' : v);
  }
  el.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
  return el;
}

export function replace(el, ...children) {
  el.replaceChildren(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
  return el;
}

/** Change text only when it differs, so that nothing flickers or loses its selection. */
export function setText(el, text) {
  if (el.textContent !== text) el.textContent = text;
}

export function bytes(n) {
  if (n === null || n === undefined) return '–';
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let i = 0;
  while (n >= 1000 && i < units.length - 1) { n /= 1000; i++; }
  return `${i === 0 ? n : n.toPrecision(3)} ${units[i]}`;
}

export function seconds(s) {
  if (s === null || s === undefined || !Number.isFinite(s)) return '–';
  if (s < 1e-3) return `${(s * 1e6).toPrecision(3)} µs`;
  if (s < 1) return `${(s * 1e3).toPrecision(3)} ms`;
  if (s < 90) return `${s.toPrecision(3)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  return `${(s / 3600).toPrecision(2)} h`;
}

export function fixed(x, digits = 2) {
  return x === null || x === undefined || !Number.isFinite(x) ? '–' : x.toFixed(digits);
}

export function count(n) {
  return n === null || n === undefined ? '–' : n.toLocaleString('en-US');
}

export function ago(iso) {
  if (!iso) return '–';
  const s = (Date.now() - Date.parse(iso)) / 1000;
  if (s < 5) return 'just now';
  if (s < 60) return `${Math.floor(s)} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ago`;
  return new Date(iso).toISOString().slice(0, 10);
}

export function pill(status) {
  return h('span', { class: `pill ${status}` }, status);
}

export function toast(text) {
  const box = document.getElementById('toasts');
  const el = h('p', {}, text, h('button', { class: 'plain', 'aria-label': 'Dismiss', onclick: () => el.remove() }, '×'));
  box.append(el);
  setTimeout(() => el.remove(), 12000);
}
