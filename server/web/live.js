// live.js - one WebSocket for the page: subscriptions survive reconnects by sequence number, so no event is missed or seen twice.

const FEATURES = ['binary_samples', 'layers'];
const subs = new Map(); // job id or '*' -> {seq, handlers: Set}
const statusHandlers = new Set();
let socket = null;
let wait = 250;

function send(message) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function dispatch(job, event, frame) {
  for (const key of [job, '*']) {
    const sub = subs.get(key);
    if (!sub) continue;
    if (key !== '*' && event.seq && event.type !== 'reset') {
      if (!frame && event.seq <= sub.seq) continue;
      if (!frame) sub.seq = event.seq;
    }
    for (const f of sub.handlers) f(event, frame);
  }
}

async function onBinary(buffer) {
  const view = new DataView(buffer);
  const kind = view.getUint32(0);
  const n = view.getUint32(4);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, n)));
  const blob = new Blob([new Uint8Array(buffer, 8 + n)], { type: header.mime || 'image/png' });
  dispatch(header.job, { type: 'sample', seq: header.seq, job: header.job, data: header }, { kind, header, blob });
  send({ op: 'ack', job: header.job, seq: header.seq });
}

function connect() {
  const scheme = location.protocol === 'https:' ? 'wss:' : 'ws:';
  socket = new WebSocket(`${scheme}//${location.host}/v1/ws`, 'quantd.v1');
  socket.binaryType = 'arraybuffer';
  socket.onopen = () => {
    wait = 250;
    send({ op: 'hello', features: FEATURES });
    for (const [job, sub] of subs) send({ op: 'subscribe', job, ...(job === '*' ? {} : { after_seq: sub.seq }) });
    for (const f of statusHandlers) f(true);
  };
  socket.onmessage = (m) => {
    if (typeof m.data !== 'string') { onBinary(m.data); return; }
    const e = JSON.parse(m.data);
    if (e.op === 'event') dispatch(e.job, e, null);
    else if (e.op === 'end') dispatch(e.job, { ...e, type: 'end', data: {} }, null);
  };
  socket.onclose = () => {
    for (const f of statusHandlers) f(false);
    setTimeout(connect, wait);
    wait = Math.min(wait * 2, 8000);
  };
}

/** Returns a function that ends the subscription. afterSeq: the newest event already known. */
export function subscribe(job, afterSeq, handler) {
  let sub = subs.get(job);
  if (!sub) {
    sub = { seq: afterSeq, handlers: new Set() };
    subs.set(job, sub);
    send({ op: 'subscribe', job, ...(job === '*' ? {} : { after_seq: afterSeq }) });
  }
  sub.handlers.add(handler);
  return () => {
    sub.handlers.delete(handler);
    if (sub.handlers.size === 0) {
      subs.delete(job);
      send({ op: 'unsubscribe', job });
    }
  };
}

export function onStatus(handler) {
  statusHandlers.add(handler);
}

connect();
