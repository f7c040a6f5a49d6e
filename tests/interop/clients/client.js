// MQTT.js in the scenario of test_clients.py: client.js VERSION HOST PORT DEVICE CA CERTIFICATE KEY LISTENER
const fs = require("node:fs");
const readline = require("node:readline");
const mqtt = require("mqtt");

const [version, host, port, device, ca, certificate, key, listener] = process.argv.slice(2);
const up = `devices/${device}/up/t`;

async function connected() {
  const client = mqtt.connect({
    protocol: listener === "wss" ? "wss" : "mqtts", path: "/mqtt", host, port: Number(port), clientId: device, protocolVersion: Number(version), clean: false,
    properties: version === "5" ? { sessionExpiryInterval: 600 } : undefined, reconnectPeriod: 0,
    ca: fs.readFileSync(ca), cert: fs.readFileSync(certificate), key: fs.readFileSync(key),
  });
  const connack = await new Promise((resolve, reject) => client.once("connect", resolve).once("error", reject));
  client.on("error", () => process.exit(1)).on("close", () => client.disconnecting || process.exit(1));
  return [client, connack.sessionPresent];
}

// Its callback has the error of a reason code that refuses, and the acknowledgement.
function publish(client, topic, payload, qos) {
  return new Promise((resolve) => client.publish(topic, payload, { qos }, (error, packet) => resolve([error, packet])));
}

async function main() {
  let [client] = await connected();
  const message = new Promise((resolve) => client.on("message", (_, payload) => resolve(String(payload))));
  const granted = (await client.subscribeAsync(`devices/${device}/down/#`, { qos: 1 })).map((one) => one.qos);
  for (const qos of [0, 1, 2]) await publish(client, up, String(qos), qos);
  const [error, packet] = await publish(client, "devices/another/up/t", "denied", 1);
  await publish(client, up, "after", 1);
  const denied = { code: error ? error.code : 0, reason: packet?.properties?.reasonString ?? "" };
  console.log(JSON.stringify({ granted, denied, got: await message }));
  await new Promise((resolve) => readline.createInterface({ input: process.stdin }).once("line", resolve));
  await client.endAsync();
  let present;
  [client, present] = await connected();
  await publish(client, up, "again", 1);
  console.log(JSON.stringify({ present }));
  await client.endAsync();
  process.exit(0);
}

main();
