// jobs.js - the queue: a list that follows the jobs as they go.
import { get, post } from './api.js';
import { ago, h, pill, replace, setText, toast } from './dom.js';
import { subscribe } from './live.js';

const FINAL = new Set(['succeeded', 'failed', 'canceled', 'dead']);

/** What can still be done about a job: the name of the button and the path behind it. */
function deed(job) {
  if (!FINAL.has(job.status)) return ['Cancel', 'cancel'];
  return job.status === 'succeeded' ? null : ['Try again', 'retry'];
}

export function jobsPage(main) {
  const rows = new Map(); // id -> {job, el, parts}
  const body = h('tbody');
  const empty = h('p', { class: 'muted' }, 'No jobs yet. ', h('a', { href: '#/new' }, 'Submit the first one'), '.');
  const more = h('button', { hidden: true, onclick: () => load(cursor) }, 'Show older jobs');
  const filter = h('select', { 'aria-label': 'Show jobs by state', onchange: () => { rows.clear(); replace(body); load(null); } },
    [['', 'All states'], ['queued,scheduled,retry_wait', 'Waiting'], ['running', 'Running'], ['succeeded', 'Succeeded'],
      ['failed,dead', 'Failed'], ['canceled', 'Canceled']].map(([v, t]) => h('option', { value: v }, t)));
  let cursor = null;
  let gone = false;

  function row(job) {
    const parts = {
      status: h('td', {}, pill(job.status)),
      progress: h('progress', { max: 1, value: 0, 'aria-label': 'progress' }),
      phase: h('span', { class: 'muted' }),
      when: h('td', { class: 'muted nowrap' }),
      action: h('td', { class: 'right' }),
    };
    const el = h('tr', {},
      h('td', {}, h('a', { href: `#/jobs/${job.id}`, class: 'mono' }, job.id.slice(0, 12) + '…' + job.id.slice(-4))),
      h('td', {}, `${job.kind} · ${job.params?.method ?? job.method ?? ''}`),
      parts.status,
      h('td', { class: 'wide' }, parts.progress, ' ', parts.phase),
      parts.when, parts.action);
    return { job, el, parts };
  }

  function update(entry) {
    const { job, parts } = entry;
    const p = job.progress || {};
    if (parts.status.firstChild.textContent !== job.status) replace(parts.status, pill(job.status));
    parts.progress.hidden = job.status !== 'running';
    parts.progress.value = p.total > 0 ? p.done / p.total : 0;
    const words = job.status === 'running' ? `${p.phase ?? ''} ${p.total > 0 ? `${p.done}/${p.total}` : ''}`
      : job.status === 'queued' ? (job.position >= 0 ? `position ${job.position + 1}` : 'waiting')
        : job.error ? (job.error.message ?? job.error.detail ?? '') : '';
    setText(parts.phase, words.slice(0, 90));
    setText(parts.when, ago(job.finished_at || job.started_at || job.created_at));
    const [name, path] = deed(job) ?? ['', ''];
    if (name !== parts.action.textContent) {
      replace(parts.action, name && h('button', { onclick: () => post(`/v1/jobs/${job.id}/${path}`).catch((e) => toast(e.message)) }, name));
    }
  }

  function show(job, atTop) {
    let entry = rows.get(job.id);
    if (!entry) {
      entry = row(job);
      rows.set(job.id, entry);
      if (atTop) body.prepend(entry.el); else body.append(entry.el);
    }
    entry.job = job;
    update(entry);
    empty.hidden = rows.size > 0;
  }

  async function load(after) {
    try {
      const q = new URLSearchParams({ limit: '50', order: 'desc' });
      if (filter.value) q.set('status', filter.value);
      if (after) q.set('after', after);
      const list = await get(`/v1/jobs?${q}`);
      if (gone) return;
      for (const job of list.data) show(job, false);
      cursor = list.next_cursor;
      more.hidden = !list.has_more;
      empty.hidden = rows.size > 0;
    } catch (e) { toast(e.message); }
  }

  const refreshing = new Set();
  async function refresh(id) {
    if (refreshing.has(id)) return;
    refreshing.add(id);
    try {
      const job = await get(`/v1/jobs/${id}`);
      if (!gone && (rows.has(id) || !filter.value)) show(job, true);
    } catch { /* pruned meanwhile */ } finally { refreshing.delete(id); }
  }

  replace(main,
    h('div', { class: 'bar' }, h('h1', {}, 'Jobs'), filter, h('span', { class: 'grow' }), h('a', { class: 'button', href: '#/new' }, 'New job')),
    h('div', { class: 'scroll' }, h('table', { class: 'jobs' },
      h('thead', {}, h('tr', {}, ['Job', 'Kind', 'State', 'Progress', 'When', ''].map((t) => h('th', { scope: 'col' }, t)))), body)),
    empty, more);
  empty.hidden = true;
  load(null);

  const end = subscribe('*', 0, (e) => {
    const entry = rows.get(e.job);
    if (e.type === 'progress' && entry) {
      entry.job.progress = { ...entry.job.progress, ...e.data };
      if (!FINAL.has(entry.job.status)) entry.job.status = 'running';
      update(entry);
    } else if (e.type === 'state' || e.type === 'end' || e.type === 'reset') refresh(e.job);
  });
  const clock = setInterval(() => rows.forEach(update), 5000);
  return () => { gone = true; end(); clearInterval(clock); };
}
