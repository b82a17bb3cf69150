// Boxes around people: drawn with the mouse, or added and moved with fingers or keys.

import { byId, element } from "./dom.js";

const STEP = 0.02;
const LEAST_PX = 4;

/**
 * Boxes `[x, y, width, height]` in the picture's pixels. `settled` is called after each change, and once at the
 * end of a drag.
 */
export class Boxes {
  constructor({ settled }) {
    this.layer = byId("boxes");
    this.settled = settled;
    this.size = { width: 1, height: 1 };
    this.all = [];
    this.layer.addEventListener("pointerdown", (event) => this.draw(event));
  }

  /** Forget all boxes and take those of a picture of this size. */
  reset(size) {
    this.size = size;
    this.all = [];
    this.render();
  }

  /** A box in the middle, with the focus on it. */
  add() {
    const { width, height } = this.size;
    this.all.push([width * 0.25, height * 0.1, width * 0.5, height * 0.8]);
    this.render();
    this.layer.lastElementChild.focus();
    this.settled();
  }

  render() {
    this.layer.replaceChildren(...this.all.map((_, index) => this.make(index)));
  }

  make(index) {
    const remove = element("button", { type: "button", aria: { label: `Remove box ${index + 1}` } }, "×");
    remove.addEventListener("click", () => this.remove(index));
    const corner = element("span", { className: "corner", aria: { hidden: "true" } });
    const box = element("div", { className: "box", tabIndex: 0, aria: { describedby: "box-help" } }, remove, corner);
    box.setAttribute("role", "group");
    box.addEventListener("pointerdown", (event) => {
      event.stopPropagation();
      if (event.target !== remove) this.drag(event, index, event.target === corner);
    });
    box.addEventListener("keydown", (event) => this.key(event, index));
    this.place(box, index);
    return box;
  }

  place(box, index) {
    const [x, y, width, height] = this.all[index];
    const share = (value, whole) => `${(100 * value) / whole}%`;
    box.style.left = share(x, this.size.width);
    box.style.top = share(y, this.size.height);
    box.style.width = share(width, this.size.width);
    box.style.height = share(height, this.size.height);
    const [left, top, w, h] = this.all[index].map(Math.round);
    box.setAttribute("aria-label", `Box ${index + 1}: at ${left}, ${top}, ${w} by ${h} pixels`);
  }

  remove(index) {
    this.all.splice(index, 1);
    this.render();
    (this.layer.children[Math.min(index, this.all.length - 1)] ?? byId("add-box")).focus();
    this.settled();
  }

  /** Put a box where it was wanted, kept inside of the picture. */
  set(index, [x, y, width, height]) {
    const fit = (value, least, most) => Math.min(Math.max(value, least), Math.max(least, most));
    const w = fit(width, LEAST_PX, this.size.width);
    const h = fit(height, LEAST_PX, this.size.height);
    this.all[index] = [fit(x, 0, this.size.width - w), fit(y, 0, this.size.height - h), w, h];
    this.place(this.layer.children[index], index);
  }

  key(event, index) {
    if (event.target.tagName === "BUTTON") return;
    if (event.key === "Delete" || event.key === "Backspace") {
      event.preventDefault();
      this.remove(index);
      return;
    }
    const direction = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!direction) return;
    event.preventDefault();
    const [x, y, width, height] = this.all[index];
    const dx = direction[0] * STEP * this.size.width;
    const dy = direction[1] * STEP * this.size.height;
    this.set(index, event.shiftKey ? [x, y, width + dx, height + dy] : [x + dx, y + dy, width, height]);
    this.settled();
  }

  /** Where a pointer is, in the picture's pixels; outside of it, the nearest edge. */
  point(event) {
    const { left, top, width, height } = this.layer.getBoundingClientRect();
    const along = (distance, whole, size) => (Math.min(Math.max(distance, 0), whole) * size) / whole;
    return [
      along(event.clientX - left, width, this.size.width),
      along(event.clientY - top, height, this.size.height),
    ];
  }

  follow(event, target, moved) {
    event.preventDefault();
    target.setPointerCapture(event.pointerId);
    const ended = new AbortController();
    const { signal } = ended;
    target.addEventListener("pointermove", (at) => moved(this.point(at)), { signal });
    const end = () => {
      ended.abort();
      this.settled();
    };
    target.addEventListener("pointerup", end, { signal });
    target.addEventListener("pointercancel", end, { signal });
  }

  drag(event, index, resizing) {
    const [startX, startY] = this.point(event);
    const [x, y, width, height] = this.all[index];
    this.layer.children[index].focus();
    this.follow(event, event.target, ([atX, atY]) => {
      const [dx, dy] = [atX - startX, atY - startY];
      this.set(index, resizing ? [x, y, width + dx, height + dy] : [x + dx, y + dy, width, height]);
    });
  }

  /** A mouse or pen draws a new box; a finger scrolls the page. */
  draw(event) {
    if (event.pointerType === "touch" || event.button !== 0) return;
    const [startX, startY] = this.point(event);
    let index = -1;
    this.follow(event, this.layer, ([atX, atY]) => {
      const [width, height] = [Math.abs(atX - startX), Math.abs(atY - startY)];
      if (index < 0) {
        if (Math.max(width, height) < 2 * LEAST_PX) return;
        index = this.all.push([startX, startY, LEAST_PX, LEAST_PX]) - 1;
        this.layer.append(this.make(index));
      }
      this.set(index, [Math.min(startX, atX), Math.min(startY, atY), width, height]);
    });
  }
}
