// Reads where every channel is, and every move as it happens, in Node.js: kafkajs for the topic, ajv for the contract.
//
//     npm ci && node read_changes.mjs 127.0.0.1:9092 cluster-changes
//
// All it knows of serverchange is the JSON Schema of the event. A channel's changes are ordered by (generation,
// version), whatever the arrival; a restart reads the snapshot again.
import { readFileSync } from "node:fs";
import { Ajv2020 } from "ajv/dist/2020.js";
import formats from "ajv-formats";
import { Kafka, logLevel } from "kafkajs";

const [brokers = "127.0.0.1:9092", topic = "cluster-changes"] = process.argv.slice(2);
const schema = new URL("../../schemas/generated/cluster.changed.v1.schema.json", import.meta.url);
const isChange = formats.default(new Ajv2020({ strict: false })).compile(JSON.parse(readFileSync(schema, "utf8")));

const kafka = new Kafka({ clientId: "moves", brokers: brokers.split(","), logLevel: logLevel.NOTHING });
const consumer = kafka.consumer({ groupId: `moves-${process.pid}-${Date.now()}`, readUncommitted: false });
await consumer.connect();
await consumer.subscribe({ topic, fromBeginning: true });

const newest = new Map();
await consumer.run({
  eachMessage: async ({ message }) => {
    const event = JSON.parse(message.value.toString());
    if (!isChange(event)) {
      console.log(`refused: ${isChange.errors[0].instancePath} ${isChange.errors[0].message}`);
      return;
    }
    const { subject: channel, data } = event;
    const [generation, version] = newest.get(channel) ?? [0, 0];
    if (data.generation < generation || (data.generation === generation && data.version <= version)) return;
    newest.set(channel, [data.generation, data.version]);
    console.log(`${channel}: ${data.what}, ${data.previous ?? "-"} -> ${data.cluster ?? "-"}`);
  },
});
