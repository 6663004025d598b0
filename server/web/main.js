// main.js - which page is shown, by the part of the address after #; and the state of the daemon in the corner.
import { h, replace, setText } from './dom.js';
import { onStatus } from './live.js';
import { jobsPage } from './jobs.js';
import { jobPage } from './job.js';
import { modelsPage } from './models.js';
import { newPage } from './submit.js';

const main = document.getElementById('main');
let leave = null;

const routes = [
  [/^#?\/?$/, () => jobsPage(main), 'jobs', 'Jobs'],
  [/^#\/jobs\/([\w-]+)$/, (id) => jobPage(main, id), 'jobs', 'Job'],
  [/^#\/models$/, () => modelsPage(main), 'models', 'Models'],
  [/^#\/new(?:\?model=([\w-]+))?$/, (model) => newPage(main, model), 'new', 'New job'],
];

function route() {
  leave?.();
  leave = null;
  const hash = location.hash || '#/';
  for (const [pattern, open, page, title] of routes) {
    const m = pattern.exec(hash);
    if (!m) continue;
    document.title = `${title} · quantd`;
    for (const a of document.querySelectorAll('nav a')) {
      if (a.dataset.page === page) a.setAttribute('aria-current', 'page');
      else a.removeAttribute('aria-current');
    }
    leave = open(m[1]) || null;
    return;
  }
  replace(main, h('h1', {}, 'No such page'), h('p', {}, h('a', { href: '#/' }, 'Back to the jobs')));
}

const daemon = document.getElementById('daemon');
async function readiness() {
  let state = 'DOWN', reason = 'no answer from the daemon';
  try {
    const doc = await (await fetch('/readyz')).json();
    state = doc.status || doc.state || 'DOWN';
    reason = doc.reason || doc.detail || '';
  } catch { /* stays DOWN */ }
  daemon.firstElementChild.dataset.state = state;
  daemon.title = reason;
  setText(daemon.lastElementChild, state.toLowerCase());
}
onStatus(() => readiness());
setInterval(readiness, 5000);
readiness();
addEventListener('hashchange', () => { route(); main.focus({ preventScroll: true }); scrollTo(0, 0); });
route();
