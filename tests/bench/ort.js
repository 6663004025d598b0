// ort.js - median and least seconds of one call, and median seconds of the processor, of a network in onnxruntime. usage: node ort.js MODEL.onnx BATCH THREADS ROUNDS
// Inputs are known by name: "sample" and "x" are pictures of 32 x 32, "timestep" a list.
const ort = require('onnxruntime-node');

async function main([model, batch, threads, rounds]) {
  const n = Number(batch);
  const session = await ort.InferenceSession.create(model, { intraOpNumThreads: Number(threads), interOpNumThreads: 1 });
  const picture = new Float32Array(n * 3 * 32 * 32).map((_, i) => ((i * 2654435761) % 4096) / 2048 - 1);
  const feeds = {};
  for (const name of session.inputNames)
    feeds[name] = name === 'timestep' ? new ort.Tensor('float32', new Float32Array(n).fill(500), [n])
                                      : new ort.Tensor('float32', picture, [n, 3, 32, 32]);
  await session.run(feeds);
  const seconds = [], worked = [];
  for (let k = 0; k < Number(rounds); k++) {
    const start = process.hrtime.bigint(), before = process.cpuUsage();
    await session.run(feeds);
    const used = process.cpuUsage(before);
    worked.push((used.user + used.system) / 1e6);
    seconds.push(Number(process.hrtime.bigint() - start) / 1e9);
  }
  seconds.sort((a, b) => a - b);
  worked.sort((a, b) => a - b);
  console.log(seconds[seconds.length >> 1], seconds[0], worked[worked.length >> 1]);
}
main(process.argv.slice(2));
