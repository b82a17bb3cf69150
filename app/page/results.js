// The answer as bars or people, and the figures below it.

import { byId, bytes, element, ms, percent, show } from "./dom.js";
import { personColour } from "./skeleton.js";

const STAGES = ["decode", "preprocess", "queue", "infer", "postprocess"];

/** The classes as bars, best first. */
export function showClasses(predictions) {
  const rows = predictions.map(({ label, score }) => {
    const fill = element("div", { className: "fill" });
    fill.style.width = percent(score).replace(" ", "");
    return element(
      "li",
      {},
      element("span", { className: "label" }, label),
      element("span", { className: "score" }, percent(score)),
      element("div", { className: "track", aria: { hidden: "true" } }, fill),
    );
  });
  byId("bars").replaceChildren(...rows);
  show(byId("bars"));
  show(byId("people"), false);
}

/** Each person with its keypoints as a table: what the canvas shows, for those who cannot see it. */
export function showPeople(people) {
  const cell = (value) => element("td", {}, value);
  const heading = (text, scope) => element("th", { scope }, text);
  const entries = people.map(({ score, keypoints }, index) => {
    const swatch = element("span", { className: "swatch", aria: { hidden: "true" } });
    swatch.style.background = personColour(index);
    const rows = keypoints.map((point) =>
      element(
        "tr",
        {},
        heading(point.name.replaceAll("_", " "), "row"),
        cell(point.x.toFixed(0)),
        cell(point.y.toFixed(0)),
        cell(percent(point.score)),
      ),
    );
    const head = ["Keypoint", "x", "y", "Score"].map((text) => heading(text, "col"));
    return element(
      "details",
      {},
      element(
        "summary",
        {},
        swatch,
        `Person ${index + 1}`,
        element("span", { className: "score" }, percent(score)),
      ),
      element(
        "table",
        {},
        element("caption", {}, "In pixels from the picture's upper left corner"),
        element("thead", {}, element("tr", {}, ...head)),
        element("tbody", {}, ...rows),
      ),
    );
  });
  byId("people").replaceChildren(...entries);
  show(byId("people"));
  show(byId("bars"), false);
}

/** Where the time went: the stages the service reports, and what is left of its total. */
export function showTiming(timing, roundTripMs) {
  const known = STAGES.reduce((sum, stage) => sum + (timing[stage] ?? 0), 0);
  const parts = STAGES.map((stage) => [stage, timing[stage] ?? 0, stage]);
  parts.push(["rest", Math.max(0, timing.total - known), "other"]);
  byId("timing-total").textContent = ms(timing.total);
  byId("timing-about").textContent = `in the service, ${ms(roundTripMs)} from this browser and back`;
  byId("timing-bar").replaceChildren(
    ...parts.map(([stage, value]) => {
      const piece = element("div", { className: `stage-${stage}` });
      piece.style.flexGrow = String(value);
      return piece;
    }),
  );
  byId("timing-list").replaceChildren(
    ...parts.map(([stage, value, name]) =>
      element(
        "div",
        {},
        element("dt", {}, element("span", { className: `swatch stage-${stage}`, aria: { hidden: "true" } }), name),
        element("dd", {}, ms(value)),
      ),
    ),
  );
  show(byId("timing"));
}

/** The model's weights against the same network in float32, and memory as it is now. */
export function showSizes(sizes, { residentBytes, isa }) {
  if (!sizes) {
    show(byId("sizes"), false);
    return;
  }
  byId("sizes-ratio").textContent = `${sizes.ratio.toFixed(1)} × smaller`;
  byId("sizes-about").textContent = "than the same network in float32";
  const largest = Math.max(sizes.float32_bytes, sizes.packed_bytes, 1);
  const bar = (name, value, ours) => {
    const fill = element("div", { className: "fill" });
    fill.style.width = `${(100 * value) / largest}%`;
    return element(
      "div",
      { className: ours ? "ours" : "" },
      element("dt", {}, name),
      element("dd", { className: "track", aria: { hidden: "true" } }, fill),
      element("dd", {}, bytes(value)),
    );
  };
  byId("sizes-list").replaceChildren(
    bar("packed", sizes.packed_bytes, true),
    bar("float32", sizes.float32_bytes, false),
  );
  const facts = [
    ["Weights in memory", bytes(sizes.resident_bytes)],
    ["Working memory of one run", bytes(sizes.arena_bytes)],
    ...(residentBytes ? [["Whole service, resident", bytes(residentBytes)]] : []),
    ...(isa && isa !== "none" ? [["Instruction set", isa.replaceAll("_", " ")]] : []),
  ];
  byId("memory-list").replaceChildren(
    ...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
  );
  show(byId("sizes"));
}

/** One sentence about a model: what it does and how well its packer measured it. */
export function aboutModel(card) {
  if (card.state !== "ready") return `This model is ${card.state}.`;
  const { width, height } = card.input;
  const metrics = card.provenance?.metrics ?? {};
  const top1 = metrics.val_top1 ?? metrics.top1;
  const measured = typeof top1 === "number" ? ` Its training measured top-1 ${(top1 <= 1 ? 100 * top1 : top1).toFixed(1)} %.` : "";
  if (card.task !== "classification") {
    return `Finds ${card.keypoints.names.length} keypoints of each person, seen at ${width} × ${height} pixels.`;
  }
  const few = card.labels.length <= 12 ? `: ${card.labels.join(", ")}` : "";
  return `Picks one of ${card.labels.length} classes at ${width} × ${height} pixels${few}.${measured}`;
}
