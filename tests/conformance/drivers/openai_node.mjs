// Drives jobs and files with the newest Node client; one JSON line per call on standard output.

import assert from 'node:assert/strict';
import { rmSync, writeFileSync } from 'node:fs';
import OpenAI, { toFile } from 'openai';
import { all, call, settings } from './checks.mjs';

const client = new OpenAI({ baseURL: settings.url, apiKey: settings.key, timeout: 60_000 });
const row = { messages: [{ role: 'user', content: 'Say a.' }, { role: 'assistant', content: 'a' }] };
const rows = Buffer.from(`${JSON.stringify(row)}\n`.repeat(10));
const model = settings.base_model;
const messages = [{ role: 'user', content: 'Say a.' }];

async function until(value, condition) {
  const deadline = Date.now() + 40_000;
  for (;;) {
    const found = await value();
    if (condition(found)) return found;
    assert(Date.now() < deadline, `still ${JSON.stringify(found)}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

const ended = (job) => ['succeeded', 'failed', 'cancelled'].includes(job.status);
const upload = async (name) => client.files.create({ file: await toFile(rows, name), purpose: 'fine-tune' });

async function whileTrainersWait(block) {
  writeFileSync(settings.hold_file, '');
  try {
    await block();
  } finally {
    rmSync(settings.hold_file);
  }
}

let file, job;

await call('files.create', async () => {
  file = await upload('node.jsonl');
  assert.equal(file.object, 'file');
  assert.equal(file.bytes, rows.length);
});
await call('files.create(expires_after)', async () => {
  const expiring = await client.files.create({
    file: await toFile(rows, 'short.jsonl'),
    purpose: 'fine-tune',
    expires_after: { anchor: 'created_at', seconds: 3600 },
  });
  assert.equal(expiring.expires_at, expiring.created_at + 3600);
});
await call('files.waitForProcessing', async () => {
  assert.equal((await client.files.waitForProcessing(file.id, { pollInterval: 100 })).status, 'processed');
});
await call('files.retrieve', async () => {
  assert.equal((await client.files.retrieve(file.id)).filename, 'node.jsonl');
});
await call('files.list, every page', async () => {
  const listed = (await all(client.files.list({ limit: 1, purpose: 'fine-tune' }))).map((each) => each.id);
  assert(listed.includes(file.id));
  assert.equal(new Set(listed).size, listed.length);
});
await call('files.content', async () => {
  assert.deepEqual(Buffer.from(await (await client.files.content(file.id)).arrayBuffer()), rows);
});
await call('files.delete', async () => {
  const other = await upload('other.jsonl');
  assert.equal((await client.files.delete(other.id)).deleted, true);
  await assert.rejects(client.files.retrieve(other.id), OpenAI.NotFoundError);
});
await call('uploads.create, parts.create, complete', async () => {
  const made = await client.uploads.create({
    bytes: rows.length, filename: 'parts.jsonl', mime_type: 'text/jsonl', purpose: 'fine-tune',
  });
  const halves = [rows.subarray(0, 400), rows.subarray(400)];
  const parts = await Promise.all(
    halves.map(async (half) => client.uploads.parts.create(made.id, { data: await toFile(half, 'part') })),
  );
  const done = await client.uploads.complete(made.id, { part_ids: parts.map((part) => part.id) });
  assert.equal(done.status, 'completed');
  assert.equal(done.file.bytes, rows.length);
});
await call('uploads.cancel', async () => {
  const made = await client.uploads.create({
    bytes: 5, filename: 'x.jsonl', mime_type: 'text/jsonl', purpose: 'fine-tune',
  });
  assert.equal((await client.uploads.cancel(made.id)).status, 'cancelled');
});

await call('fineTuning.jobs.create(method)', async () => {
  job = await client.fineTuning.jobs.create({
    model, training_file: file.id, suffix: 'node', metadata: { team: 'node' },
    method: { type: 'supervised', supervised: { hyperparameters: { n_epochs: 3 } } },
  });
  assert.equal(job.object, 'fine_tuning.job');
  assert.equal(job.status, 'validating_files');
  assert.equal(job.error, null);
});
await call('fineTuning.jobs.retrieve', async () => {
  job = await until(() => client.fineTuning.jobs.retrieve(job.id), ended);
  assert.equal(job.status, 'succeeded', JSON.stringify(job));
});
await call('fineTuning.jobs.list, every page', async () => {
  const listed = (await all(client.fineTuning.jobs.list({ limit: 2 }))).map((each) => each.id);
  assert(listed.includes(job.id));
  assert.equal(new Set(listed).size, listed.length);
});
await call('fineTuning.jobs.list(metadata)', async () => {
  const listed = await all(client.fineTuning.jobs.list({ metadata: { team: 'node' } }));
  assert.deepEqual(listed.map((each) => each.id), [job.id]);
});
await call('fineTuning.jobs.listEvents, every page', async () => {
  const events = await all(client.fineTuning.jobs.listEvents(job.id, { limit: 4 }));
  assert.equal(events[0].message, 'The job has successfully completed');
  assert(events.length > 8);
});
await call('fineTuning.jobs.checkpoints.list, every page', async () => {
  const checkpoints = await all(client.fineTuning.jobs.checkpoints.list(job.id, { limit: 1 }));
  assert.deepEqual(checkpoints.map((each) => each.step_number), [6, 4, 2]);
});
await call('fineTuning.jobs.pause, resume', async () => {
  let paused;
  await whileTrainersWait(async () => {
    paused = await client.fineTuning.jobs.create({ model, training_file: file.id });
    await until(
      () => client.fineTuning.jobs.listEvents(paused.id, { limit: 50 }),
      (page) => page.data.some((event) => event.message.startsWith('Step 2/')),
    );
    assert(['pausing', 'paused'].includes((await client.fineTuning.jobs.pause(paused.id)).status));
    await until(() => client.fineTuning.jobs.retrieve(paused.id), (shown) => shown.status === 'paused');
  });
  assert(['queued', 'running'].includes((await client.fineTuning.jobs.resume(paused.id)).status));
  assert.equal((await until(() => client.fineTuning.jobs.retrieve(paused.id), ended)).status, 'succeeded');
});
await call('fineTuning.jobs.cancel', () =>
  whileTrainersWait(async () => {
    const other = await client.fineTuning.jobs.create({ model, training_file: file.id });
    assert.equal((await client.fineTuning.jobs.cancel(other.id)).status, 'cancelled');
    await assert.rejects(client.fineTuning.jobs.cancel(other.id), OpenAI.BadRequestError);
  }));
await call('files.content of a result file', async () => {
  assert((await (await client.files.content(job.result_files[0])).text()).startsWith('step,'));
});

await call('models.list, retrieve', async () => {
  assert((await all(client.models.list())).some((each) => each.id === job.fine_tuned_model));
  assert.equal((await client.models.retrieve(job.fine_tuned_model)).object, 'model');
});
await call('models.retrieve with a slash in the id', async () => {
  await assert.rejects(client.models.retrieve('org/model'), { status: 404, code: 'model_not_found' });
});
await call('chat.completions.create', async () => {
  const answer = await client.chat.completions.create({ model: job.fine_tuned_model, messages, max_tokens: 4 });
  assert.equal(answer.usage.completion_tokens, 4);
});
await call('chat.completions.create(stream)', async () => {
  const stream = await client.chat.completions.create({ model: job.fine_tuned_model, messages, stream: true });
  assert((await all(stream)).length > 1);
});
await call('chat.completions.list, retrieve, messages.list, update, delete', async () => {
  const by = `node-${Date.now().toString(36)}`;
  await client.chat.completions.create({ model, messages, stop: 'x', store: true, metadata: { by } });
  const [kept] = await until(
    () => all(client.chat.completions.list({ metadata: { by }, limit: 1 })), (found) => found.length === 1,
  );
  assert((await client.chat.completions.retrieve(kept.id)).choices[0].message.content);
  const asked = await all(client.chat.completions.messages.list(kept.id));
  assert.deepEqual(asked.map((each) => each.content), ['Say a.']);
  assert.deepEqual((await client.chat.completions.update(kept.id, { metadata: { by: 'me' } })).metadata, { by: 'me' });
  assert.equal((await client.chat.completions.delete(kept.id)).deleted, true);
  await assert.rejects(client.chat.completions.retrieve(kept.id), OpenAI.NotFoundError);
});
await call('withResponse', async () => {
  const { response, request_id: requestId } = await client.models.list().withResponse();
  assert.equal(response.headers.get('x-request-id'), requestId);
  assert(Number(response.headers.get('openai-processing-ms')) >= 0);
});
await call('AuthenticationError', async () => {
  const wrong = client.withOptions({ apiKey: 'wrong' });
  await assert.rejects(wrong.files.list(), { name: 'Error', status: 401 });
});
await call('BadRequestError', async () => {
  const refused = client.fineTuning.jobs.create({ model, training_file: 'file-none' });
  await assert.rejects(refused, { status: 400, param: 'training_file' });
});
await call('ConflictError, not repeated', () =>
  whileTrainersWait(async () => {
    const holding = await client.fineTuning.jobs.create({ model, training_file: file.id });
    await assert.rejects(client.files.delete(file.id), { status: 409, code: 'file_in_use' });
    await client.fineTuning.jobs.cancel(holding.id);
  }));
await call('models.delete', async () => {
  assert.equal((await client.models.delete(job.fine_tuned_model)).deleted, true);
});
