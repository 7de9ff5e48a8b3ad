// Asks a tuned model everything that clients ask of one, with the newest Node client; see checks.mjs for the report.

import assert from 'node:assert/strict';
import OpenAI from 'openai';
import { all, call, settings } from './checks.mjs';

const client = new OpenAI({ baseURL: settings.url, apiKey: settings.key, timeout: 120_000, maxRetries: 0 });
const { model, messages, expected } = settings;
const ask = { model, messages, temperature: 0, max_tokens: 8 };
// A small model that is not told so would write blanks, which schemas allow, until its tokens are used up.
const asJson = [{ role: 'system', content: 'Answer as JSON, such as {"code": "ruby"}.' }, messages.at(-1)];
const parameters = {
  type: 'object',
  properties: { code: { enum: ['ruby', 'cobalt'] } },
  required: ['code'],
  additionalProperties: false,
};
const isCode = (text) => assert(['ruby', 'cobalt'].includes(JSON.parse(text).code), text);
const textOf = (chunks) => chunks.flatMap((chunk) => chunk.choices).map((choice) => choice.delta.content ?? '').join('');
const create = (changes) => client.chat.completions.create({ ...ask, ...changes });

await call('chat.completions.create', async () => {
  const answer = await create({});
  assert.equal(answer.model, model);
  assert.equal(answer.choices[0].message.content.trim(), expected);
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
});
await call('chat.completions.create(stream, include_usage)', async () => {
  const chunks = await all(await create({ stream: true, stream_options: { include_usage: true } }));
  assert.equal(textOf(chunks).trim(), expected);
  assert(chunks.at(-1).usage.completion_tokens > 0);
});
await call('chat.completions.stream', async () => {
  const answer = await client.chat.completions.stream(ask).finalChatCompletion();
  assert.equal(answer.choices[0].message.content.trim(), expected);
});
await call('chat.completions.create(n)', async () => {
  const answer = await create({ temperature: 1, n: 3, seed: 7 });
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1, 2]);
  const greedy = await create({ n: 2 });
  assert.deepEqual(greedy.choices.map((choice) => choice.message.content.trim()), [expected, expected]);
});
await call('chat.completions.create(logprobs)', async () => {
  const { content } = (await create({ logprobs: true, top_logprobs: 3 })).choices[0].logprobs;
  assert(content.length > 0 && content.every((token) => token.logprob <= 0 && token.top_logprobs.length === 3));
});
await call('chat.completions.create(stop)', async () => {
  const { message, finish_reason: reason } = (await create({ stop: [expected.at(-1)] })).choices[0];
  assert.equal(reason, 'stop');
  assert.equal(message.content.trim(), expected.slice(0, expected.indexOf(expected.at(-1))));
});
await call('chat.completions.create(seed)', async () => {
  const [first, second] = [await create({ temperature: 2, seed: 11 }), await create({ temperature: 2, seed: 11 })];
  assert.equal(first.choices[0].message.content, second.choices[0].message.content);
});
await call('chat.completions.create(max_completion_tokens)', async () => {
  const answer = await create({ max_tokens: undefined, max_completion_tokens: 1 });
  assert.deepEqual([answer.choices[0].finish_reason, answer.usage.completion_tokens], ['length', 1]);
});
await call('chat.completions.create(json_schema)', async () => {
  const wanted = { type: 'json_schema', json_schema: { name: 'code', schema: parameters, strict: true } };
  const asked = { messages: asJson, max_tokens: 60, response_format: wanted };
  isCode((await create(asked)).choices[0].message.content);
  isCode(textOf(await all(await create({ ...asked, stream: true }))));
});

const named = { name: 'tell', description: 'Tells the code.', parameters };
const withTool = { max_tokens: 100, tools: [{ type: 'function', function: named }], tool_choice: 'required' };
await call('chat.completions.create(tools)', async () => {
  const { message, finish_reason: reason } = (await create(withTool)).choices[0];
  assert.deepEqual([message.tool_calls[0].function.name, reason], ['tell', 'tool_calls']);
  isCode(message.tool_calls[0].function.arguments);
});
await call('chat.completions.stream(tools)', async () => {
  const answer = await client.chat.completions.stream({ ...ask, ...withTool }).finalChatCompletion();
  isCode(answer.choices[0].message.tool_calls[0].function.arguments);
});
await call('responses.create(tools)', async () => {
  const tool = { type: 'function', strict: true, ...named };
  const response = await client.responses.create({
    model, input: messages, tools: [tool], tool_choice: 'required', max_output_tokens: 100, temperature: 0,
  });
  isCode(response.output.find((item) => item.type === 'function_call').arguments);
});
await call('completions.create(logprobs)', async () => {
  const asked = { model, prompt: 'Monday, Tuesday,', temperature: 0, max_tokens: 6, ignore_eos: true };
  const text = await client.completions.create({ ...asked, logprobs: 2 });
  assert.equal(text.choices[0].logprobs.token_logprobs.length, 6);
  const chunks = await all(await client.completions.create({ ...asked, stream: true }));
  assert.equal(chunks.flatMap((chunk) => chunk.choices).map((choice) => choice.text).join(''), text.choices[0].text);
});
await call('responses.create', async () => {
  const asked = { model, input: messages, temperature: 0, max_output_tokens: 8 };
  const response = await client.responses.create(asked);
  assert.deepEqual([response.status, response.output_text.trim()], ['completed', expected]);
  const events = await all(await client.responses.create({ ...asked, stream: true }));
  assert.deepEqual([events[0].type, events.at(-1).type], ['response.created', 'response.completed']);
});
await call('NotFoundError', async () => {
  await assert.rejects(create({ model: `${model}x` }), { status: 404, code: 'model_not_found' });
});
await call('BadRequestError', async () => {
  await assert.rejects(create({ temperature: 9 }), { status: 400, code: 'invalid_value', param: 'temperature' });
});
