// ort.js - median seconds of one call of a denoiser in onnxruntime. usage: node ort.js MODEL.onnx BATCH THREADS ROUNDS
const ort = require('onnxruntime-node');

async function main([model, batch, threads, rounds]) {
  const n = Number(batch);
  const session = await ort.InferenceSession.create(model, { intraOpNumThreads: Number(threads), interOpNumThreads: 1 });
  const sample = new Float32Array(n * 3 * 32 * 32).map((_, i) => ((i * 2654435761) % 4096) / 2048 - 1);
  const feeds = {
    sample: new ort.Tensor('float32', sample, [n, 3, 32, 32]),
    timestep: new ort.Tensor('float32', new Float32Array(n).fill(500), [n]),
  };
  await session.run(feeds);
  const seconds = [];
  for (let k = 0; k < Number(rounds); k++) {
    const start = process.hrtime.bigint();
    await session.run(feeds);
    seconds.push(Number(process.hrtime.bigint() - start) / 1e9);
  }
  seconds.sort((a, b) => a - b);
  console.log(seconds[seconds.length >> 1]);
}
main(process.argv.slice(2));
