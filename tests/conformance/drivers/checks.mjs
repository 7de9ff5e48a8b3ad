// How a driver tells what it called and how that went: one JSON line per call on standard output. See checks.py.

export const settings = JSON.parse(process.argv[2]);

export async function call(name, block) {
  try {
    await block();
    console.log(JSON.stringify({ call: name }));
  } catch (error) {
    const where = /openai_\w+\.mjs:(\d+)/.exec(error.stack)?.[1] ?? 0;
    console.log(JSON.stringify({ call: name, error: `line ${where}: ${error.name}: ${error.message}`.slice(0, 500) }));
  }
}

export async function all(page) {
  const items = [];
  for await (const item of page) items.push(item);
  return items;
}
