// Runs calls of the official JavaScript client and prints what it made of them, one JSON object a line.
// usage: node images.mjs BASE_URL API_KEY CALLS, where CALLS is a JSON list of bodies of image requests, or "models"
import OpenAI from "openai";

const [baseURL, apiKey, calls] = process.argv.slice(2);
const client = new OpenAI({baseURL, apiKey, maxRetries: 0});

async function run(call) {
  if (call === "models") {
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    return {ids};
  }
  const answer = await client.images.generate(call);
  if (!call.stream) return answer;
  const events = [];
  for await (const event of answer) events.push(event);
  return {events};
}

for (const call of JSON.parse(calls)) {
  try {
    console.log(JSON.stringify(await run(call)));
  } catch (error) {
    const {name, status, message, code, param, type} = error;
    console.log(JSON.stringify({error: {kind: error.constructor.name, name, status, message, code, param, type}}));
  }
}
