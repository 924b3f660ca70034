// Has the AsyncAPI parser read a document; prints what it objects to and exits 1 on errors.
// Usage: node check.mjs NODE_MODULES DOCUMENT
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const [modules, file] = process.argv.slice(2);
const { Parser } = createRequire(join(modules, "resolve.js"))("@asyncapi/parser");
const { document, diagnostics } = await new Parser().parse(readFileSync(file, "utf8"));

const ERROR = 0;
for (const { severity, message, path } of diagnostics) {
  console.log(`${severity === ERROR ? "error" : "note"}: ${path.join("/")}: ${message}`);
}
if (!document || diagnostics.some(({ severity }) => severity === ERROR)) {
  process.exit(1);
}
const messages = new Set(document.channels().all().flatMap((channel) => channel.messages().all().map((message) => message.name())));
console.log(`accepted: ${document.channels().all().length} channels, ${document.operations().all().length} operations, ${messages.size} messages`);
