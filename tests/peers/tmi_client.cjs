// Drives one tmi.js client for test_tmi_js.py: a JSON command a line on stdin, a JSON event a line on stdout.
//
// argv: package name, JSON options. Commands: {"call": "join", "args": ["#forsen"]}. Every event that the client
// emits comes out as {"event": …, "args": […]}, the end of a call as {"done": …} or {"failed": …}.
"use strict";

const readline = require("readline");

const [packageName, options] = process.argv.slice(2);
const tmi = require(packageName);
const silent = { info() {}, warn() {}, error() {}, setLevel() {} };
const client = new (tmi.client || tmi.Client)(Object.assign({ logger: silent }, JSON.parse(options)));

function tell(what) {
  process.stdout.write(JSON.stringify(what) + "\n");
}

const emit = client.emit;
client.emit = function (name, ...args) {
  if (!name.startsWith("_") && name !== "raw_message") {
    tell({ event: name, args });
  }
  return emit.call(this, name, ...args);
};

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const { call, args } = JSON.parse(line);
  client[call](...args).then(
    (result) => tell({ done: call, result }),
    (error) => tell({ failed: call, error: String(error) }),
  );
}).on("close", () => process.exit(0));
