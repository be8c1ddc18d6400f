// Adds flows, as many at a time as `fanfare bench` has fan-outs, and prints what came of each width as a line of JSON.
const { FlowProducer, Worker } = require('bullmq');

const connection = { url: process.env.PEERS_REDIS, maxRetriesPerRequest: null };
const PATIENCE_MS = 120_000;
const keepNothing = { removeOnComplete: true, removeOnFail: true };
let ended = () => {};

// The parent of a flow runs once all its children have: it is the final callback.
const finals = new Worker(
  'finals',
  async (job) => {
    const results = Object.values(await job.getChildrenValues());
    if (results.length !== job.data.width) throw new Error(`${results.length} results of ${job.data.width}`);
    ended(Date.now() - Math.max(...results.map((result) => result.at)));
  },
  { connection, concurrency: 64 },
);
const flows = new FlowProducer({ connection });

async function invoke(width, payload) {
  const started = performance.now();
  const child = { name: 'target', queueName: 'targets', data: payload, opts: keepNothing };
  const children = Array.from({ length: width }, () => child);
  await flows.add({ name: 'final', queueName: 'finals', data: { width }, opts: keepNothing, children });
  return performance.now() - started;
}

function median(values) {
  return values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
}

async function runFor(seconds, width, payload, openAtOnce) {
  const started = performance.now();
  const invocations = [];
  const fanIns = [];
  await new Promise((resolve, reject) => {
    let last;
    const next = () => {
      clearTimeout(last);
      last = setTimeout(() => reject(new Error('a flow has not ended')), PATIENCE_MS);
      const goesOn = performance.now() - started < seconds * 1000;
      while (goesOn && invocations.length - fanIns.length < openAtOnce) {
        const invocation = invoke(width, payload);
        invocation.catch(reject);
        invocations.push(invocation);
      }
      if (fanIns.length === invocations.length) {
        clearTimeout(last);
        resolve();
      }
    };
    ended = (fanIn) => {
      fanIns.push(fanIn);
      next();
    };
    next();
  });
  const took = (performance.now() - started) / 1000;
  return { rate: fanIns.length / took, invoke: median(await Promise.all(invocations)), fanIn: median(fanIns) };
}

async function main(widths, payloadBytes, seconds) {
  const payload = 'x'.repeat(payloadBytes - 2);
  await finals.waitUntilReady();
  for (const width of widths) {
    const openAtOnce = Math.min(Math.max(Math.floor(2000 / width), 2), 64);
    await runFor(1, width, payload, openAtOnce);
    const { rate } = await runFor(seconds, width, payload, openAtOnce);
    const alone = await runFor(seconds / 2, width, payload, 1);
    const figures = { fan_outs_per_s: rate, invoke_ms: alone.invoke, fan_in_ms: alone.fanIn };
    console.log(JSON.stringify({ width, ...figures }));
  }
  process.exit(0);
}

main(process.argv[2].split(',').map(Number), Number(process.argv[3]), Number(process.argv[4])).catch((error) => {
  console.error(error);
  process.exit(1);
});
