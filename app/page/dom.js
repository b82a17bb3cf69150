// Small helpers. Nothing here or elsewhere in this page makes HTML from strings.

export const byId = (id) => document.getElementById(id);

/** An element with properties and children; strings become text. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  const { aria = {}, ...rest } = properties;
  Object.assign(made, rest);
  for (const [name, value] of Object.entries(aria)) made.setAttribute(`aria-${name}`, value);
  made.append(...children);
  return made;
}

export const show = (node, visible = true) => {
  node.hidden = !visible;
};

/** 17.816 -> "17.8 ms", 0.642 -> "0.64 ms". */
export const ms = (value) => `${value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0)} ms`;

/** 563112 -> "0.56 MB" (10^6 bytes), small ones in kB. */
export function bytes(value) {
  if (value < 100_000) return `${(value / 1e3).toFixed(1)} kB`;
  return `${(value / 1e6).toFixed(value < 9.995e6 ? 2 : value < 99.95e6 ? 1 : 0)} MB`;
}

/** 0.9985 -> "99.9 %". */
export const percent = (share) => `${(100 * share).toFixed(1)} %`;
