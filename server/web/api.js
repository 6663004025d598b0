// api.js - requests; a refusal becomes an Error that carries the problem document.

export class Problem extends Error {
  constructor(doc, status) {
    super(doc?.detail || doc?.title || `the daemon answered ${status}`);
    this.doc = doc;
    this.status = status;
  }
}

async function answer(response) {
  const text = await response.text();
  let doc = null;
  try { doc = text ? JSON.parse(text) : null; } catch { doc = { detail: text.slice(0, 300) }; }
  if (!response.ok) throw new Problem(doc, response.status);
  return doc;
}

export async function get(path) {
  return answer(await fetch(path, { headers: { Accept: 'application/json' } }));
}

export async function post(path, body, headers = {}) {
  return answer(await fetch(path, {
    method: 'POST',
    headers: { Accept: 'application/json', ...(body === undefined ? {} : { 'Content-Type': 'application/json' }), ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
  }));
}

export async function remove(path) {
  return answer(await fetch(path, { method: 'DELETE', headers: { Accept: 'application/json' } }));
}

/** Upload one file to 'models' or 'datasets' with progress; fetch cannot report it. */
export function upload(kind, name, file, onProgress) {
  return new Promise((resolve, reject) => {
    const x = new XMLHttpRequest();
    x.open('PUT', `/v1/${kind}/${encodeURIComponent(name)}`);
    x.setRequestHeader('Accept', 'application/json');
    x.setRequestHeader('Content-Type', 'application/octet-stream');
    x.upload.onprogress = (e) => e.lengthComputable && onProgress(e.loaded, e.total);
    x.onerror = () => reject(new Error('the upload broke off'));
    x.onload = () => {
      let doc = null;
      try { doc = JSON.parse(x.responseText); } catch { /* kept null */ }
      if (x.status >= 200 && x.status < 300) resolve(doc);
      else reject(new Problem(doc, x.status));
    };
    x.send(file);
  });
}
