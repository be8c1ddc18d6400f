// Serves the targets, as a process of its own, until it is ended.
const { Worker } = require('bullmq');

const connection = { url: process.env.PEERS_REDIS, maxRetriesPerRequest: null };
new Worker(
  'targets',
  async (job) => ({ at: Date.now(), rest: 'x'.repeat(job.data.length - 50) }),
  { connection, concurrency: 256 },
);
