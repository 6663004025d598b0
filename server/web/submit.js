// submit.js - the form of a new job, built from /v1/kinds: whatever a method's schema says can be set here.
import { get, post } from './api.js';
import { h, replace, toast } from './dom.js';
import { describe, dropZone } from './models.js';

function field(name, s) {
  const id = `p-${name}`;
  const hint = [s.description, s.minimum !== undefined && s.maximum !== undefined && `${s.minimum} to ${s.maximum}`].filter(Boolean).join(' ');
  let input;
  if (s.enum) input = h('select', { id, name }, s.enum.map((v) => h('option', { value: String(v), selected: v === s.default }, String(v))));
  else if (s.type === 'boolean') input = h('input', { id, name, type: 'checkbox', checked: s.default === true });
  else if (s.type === 'integer' || s.type === 'number') {
    input = h('input', { id, name, type: 'number', step: s.type === 'integer' ? '1' : 'any', placeholder: s.default ?? '', value: '' });
    if (s.minimum !== undefined) input.min = s.minimum;
    if (s.maximum !== undefined) input.max = s.maximum;
  } else input = h('input', { id, name, type: 'text', placeholder: s.default ?? '', value: '' });
  return { name, schema: s, input, el: h('div', { class: 'field' }, h('label', { for: id }, name.replaceAll('_', ' ')), input, h('small', { class: 'muted' }, hint)) };
}

function valueOf(f) {
  const { input, schema } = f;
  if (schema.type === 'boolean') return input.checked === (schema.default === true) ? undefined : input.checked;
  if (input.value === '' || String(schema.default) === input.value) return undefined;
  return schema.type === 'integer' || schema.type === 'number' ? Number(input.value) : input.value;
}

export function newPage(main, wantedModel) {
  const form = h('form', { class: 'card' });
  let gone = false;

  async function open() {
    const [kinds, models, datasets] = await Promise.all([get('/v1/kinds'), get('/v1/models?limit=100'), get('/v1/datasets?limit=100')]);
    if (gone) return;
    let fields = [];
    const model = h('select', { id: 'model', required: true },
      models.data.map((m) => h('option', { value: m.id, selected: m.id === wantedModel }, `${m.name || m.id} (${describe(m)})`)));
    const chosen = () => models.data.find((m) => m.id === model.value);
    const kind = h('select', { id: 'kind', onchange: methods });
    const method = h('select', { id: 'method', onchange: params });
    const dataset = h('select', { id: 'dataset' }, datasets.data.map((x) => h('option', { value: x.id }, `${x.name || x.id} (${x.summary?.count ?? '?'} images)`)));
    const datasetField = h('div', { class: 'field' }, h('label', { for: 'dataset' }, 'dataset'), dataset,
      h('small', { class: 'muted' }, datasets.data.length ? '' : 'None yet: drop one on the Models page, or curl -T FILE /v1/datasets/NAME'));
    const about = h('p', { class: 'muted' });
    const basics = h('div', { class: 'fields' });
    const error = h('p', { class: 'problem', hidden: true, role: 'alert' });
    const current = () => kinds.data.find((k) => k.name === kind.value);
    const currentMethod = () => current().methods.find((x) => x.name === method.value);

    // Only what fits the chosen model is offered.
    function fits(k) {
      const m = chosen();
      return m && k.model_roles.includes(m.role) && (m.format === 'bundle' ? k.takes_quantized : k.takes_float);
    }
    function kindsOf() {
      const was = kind.value;
      replace(kind, kinds.data.filter(fits).map((k) => h('option', { value: k.name, selected: k.name === was }, k.name)));
      methods();
    }
    function methods() {
      const k = current();
      if (!k) { replace(method); replace(basics); fields = []; about.textContent = 'Nothing here can be done with this model.'; return; }
      const some = k.methods.filter((m) => !m.model_role || m.model_role === chosen().role);
      replace(method, some.map((m) => h('option', { value: m.name, selected: m.name === k.default_method }, m.name)));
      params();
    }
    function params() {
      const m = currentMethod();
      about.textContent = `${current().summary} ${m.summary}`;
      datasetField.hidden = !m.needs_dataset;
      fields = Object.entries(m.params.properties).filter(([n]) => n !== 'method').map(([n, s]) => field(n, s));
      replace(basics, fields.map((f) => f.el));
    }
    model.addEventListener('change', kindsOf);
    kindsOf();

    form.onsubmit = async (e) => {
      e.preventDefault();
      error.hidden = true;
      const body = { kind: kind.value, model: model.value, params: { method: method.value } };
      if (currentMethod()?.needs_dataset && dataset.value) body.dataset = dataset.value;
      for (const f of fields) {
        const v = valueOf(f);
        if (v !== undefined) body.params[f.name] = v;
        f.input.removeAttribute('aria-invalid');
      }
      try {
        const job = await post('/v1/jobs', body);
        location.hash = `#/jobs/${job.id}`;
      } catch (problem) {
        error.hidden = false;
        error.textContent = problem.message;
        const name = problem.doc?.param?.split('/').pop();
        const bad = fields.find((f) => f.name === name);
        if (bad) { bad.input.setAttribute('aria-invalid', 'true'); bad.input.focus(); }
      }
    };
    replace(form,
      h('div', { class: 'fields' },
        h('div', { class: 'field' }, h('label', { for: 'model' }, 'model'), model),
        h('div', { class: 'field' }, h('label', { for: 'kind' }, 'kind'), kind),
        h('div', { class: 'field' }, h('label', { for: 'method' }, 'method'), method),
        datasetField),
      about,
      h('details', { open: true }, h('summary', {}, 'Parameters'), basics),
      error,
      h('button', { class: 'primary', type: 'submit', disabled: models.data.length === 0 }, 'Submit'));
  }

  replace(main, h('h1', {}, 'New job'), dropZone('models', (m) => { location.hash = `#/new?model=${m.id}`; }), form);
  open().catch((e) => toast(e.message));
  return () => { gone = true; };
}
