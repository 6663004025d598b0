// ort_check.js - onnxruntime runs what we wrote as ONNX and must agree: floats to 1e-4 of the largest value; behind codes
// the worst within the step given, the mean within an eighth of it.
//
//   node ort_check.js FOLDER      every FOLDER/x.onnx beside FOLDER/x.safetensors (made by test_onnx_write with QUANTD_ONNX_OUT)
//
// Needs the module onnxruntime-node (checked with 1.30), found by NODE_PATH. Exit 77: it is not there; 1: they do not agree.
'use strict';
const fs = require('fs'), path = require('path');

let ort;
try {
    ort = require('onnxruntime-node');
} catch (e) {
    console.log('skipped: no onnxruntime-node');
    process.exit(77);
}

const ARRAYS = { F32: [Float32Array, 'float32'], I64: [BigInt64Array, 'int64'] };

function readSafetensors(file) {
    const bytes = fs.readFileSync(file), length = Number(bytes.readBigUInt64LE(0));
    const header = JSON.parse(bytes.subarray(8, 8 + length).toString());
    const all = {};
    for (const [name, t] of Object.entries(header)) {
        if (name === '__metadata__')
            continue;
        const [Type, type] = ARRAYS[t.dtype];
        const part = bytes.subarray(8 + length + t.data_offsets[0], 8 + length + t.data_offsets[1]);
        all[name] = { type, dims: t.shape, data: new Type(new Uint8Array(part).buffer) };
    }
    return { tensors: all, meta: header.__metadata__ || {} };
}

// What we mean, without onnxruntime's own rearranging (basic), and as it comes by default (all).
async function check(folder, name, level) {
    const { tensors, meta } = readSafetensors(path.join(folder, name + '.safetensors')), step = Number(meta.step || 0);
    const session = await ort.InferenceSession.create(path.join(folder, name + '.onnx'), {
        executionProviders: ['cpu'], intraOpNumThreads: 1, graphOptimizationLevel: level, logSeverityLevel: 3,
    });
    const feeds = {};
    for (const input of session.inputNames) {
        const t = tensors['in.' + input];
        feeds[input] = new ort.Tensor(t.type, t.data, t.dims);
    }
    const results = await session.run(feeds);
    let ok = true;
    for (const [key, want] of Object.entries(tensors)) {
        if (!key.startsWith('out.'))
            continue;
        const got = results[key.slice(4)];
        let worst = 0, top = 0, sum = 0;
        const same = got && got.data.length === want.data.length && String(got.dims) === String(want.dims);
        for (let k = 0; same && k < want.data.length; k++) {
            const d = Math.abs(got.data[k] - want.data[k]);
            worst = d <= worst ? worst : d;  // a NaN stays
            sum += d;
            top = Math.max(top, Math.abs(want.data[k]));
        }
        const most = step > 0 ? step : 1e-4 * Math.max(top, 1e-6), mean = sum / want.data.length;
        const fine = same && worst <= most && (!(step > 0) || mean <= step / 8);
        ok = ok && fine;
        console.log(`${fine ? 'ok  ' : 'FAIL'} ${name} (${level}) ${key.slice(4)}: ${
            same ? `worst ${worst.toExponential(2)} of ${most.toExponential(2)}, mean ${mean.toExponential(2)}` : 'another shape'}`);
    }
    return ok;
}

(async () => {
    const folder = process.argv[2];
    const names = fs.readdirSync(folder).filter(f => f.endsWith('.onnx')).map(f => f.slice(0, -5)).sort();
    let failed = names.length === 0 ? 1 : 0;
    for (const name of names)
        for (const level of ['basic', 'all'])
            try {
                failed += await check(folder, name, level) ? 0 : 1;
            } catch (e) {
                console.log(`FAIL ${name} (${level}): ${e.message}`);
                failed++;
            }
    console.log(failed ? `${failed} failures` : `${names.length} files agree`);
    process.exit(failed ? 1 : 0);
})();
