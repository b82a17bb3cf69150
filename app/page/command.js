// The request of this page as a command for a shell.

import { hasKey, question } from "./api.js";

const quoted = (text) => (/^[\w@=.,:/-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** A file name as curl takes it behind `@`: in quotes where it has a character that means something there. */
const fileName = (name) => (/[;,"\\]/.test(name) ? `"${name.replace(/["\\]/g, "\\$&")}"` : name);

/** A curl command; the key stands in it as a variable, never as itself. */
export function command(card, name, parameters) {
  const { path, fields } = question(card, parameters);
  const parts = [`image=@${fileName(name)}`, ...Object.entries(fields).map(([field, value]) => `${field}=${value}`)];
  const lines = [`curl ${quoted(new URL(path, document.baseURI).href)}`, ...parts.map((part) => `-F ${quoted(part)}`)];
  if (hasKey()) lines.push('-H "X-API-Key: $SIGNET_API_KEY"');
  return lines.join(" \\\n  ");
}
