// Posts one event until Tidings has it, with the CloudEvents SDK for JavaScript. Arguments, environment and exit codes are
// those of ../curl/send.sh:
//
//   node send.mjs lead.qualified /agents/voice lead-2041 <data.json
//
// Not with the SDK's httpTransport and emitterFor: their promise is fulfilled whatever the status, and hides it, so that a 403
// or a 503 looks like success. HTTP.binary makes headers and body, and fetch tells the status.
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { CloudEvent, HTTP } from "cloudevents";

const { TIDINGS_URL, NAMESPACE, TOKEN_FILE = "/var/run/secrets/tidings/token", GIVE_UP_AFTER = "300" } = process.env;
const url = `${TIDINGS_URL}/v1/namespaces/${NAMESPACE}/events`;
// In time the same event can be accepted: its id makes that safe. 401: the file has a newer token then.
const again = (status) => [401, 408, 429].includes(status) || status >= 500;

async function post(event) {
  const token = readFileSync(TOKEN_FILE, "utf8").trim(); // each time: the kubelet renews it
  const { headers, body } = HTTP.binary(event);
  return fetch(url, {
    method: "POST",
    headers: { ...headers, authorization: `Bearer ${token}` },
    body,
    signal: AbortSignal.timeout(30_000),
  });
}

async function send(event, giveUpAt) {
  for (let backoff = 1; ; backoff = Math.min(backoff * 2, 30)) {
    const response = await post(event).catch((error) => {
      console.error(`no answer: ${error.cause?.code ?? error.message}`);
    });
    const status = response?.status ?? 0;
    const text = (await response?.text().catch(() => "")) ?? "";
    if (response?.ok) return console.log(text);
    if (status && !again(status)) {
      console.error(`refused: ${status} ${text}`);
      process.exit(1);
    }
    const after = Number(response?.headers.get("retry-after")) || backoff;
    if (Date.now() + after * 1000 >= giveUpAt) {
      console.error(`given up: ${status}`);
      process.exit(75);
    }
    console.error(`not yet: ${status}, again in ${after} s`);
    await sleep(after * 1000);
  }
}

const [type, source, id] = process.argv.slice(2);
const data = JSON.parse(readFileSync(0, "utf8"));
await send(new CloudEvent({ type, source, id, data }), Date.now() + Number(GIVE_UP_AFTER) * 1000);
