// Skeletons over a picture.

const COLOURS = ["#ffd84d", "#5ad1ff", "#ff8fd0", "#8dff8a", "#ffa45c", "#c7a8ff", "#ffffff"];
const LEAST_SCORE = 0.2;

export const personColour = (index) => COLOURS[index % COLOURS.length];

/**
 * Draw people over a picture of `image.width` x `image.height` pixels that fills the canvas. Keypoints below
 * LEAST_SCORE are left out, and so are limbs that lead to them.
 */
export function drawPeople(canvas, { image, people, skeleton }) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const density = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * density);
  canvas.height = Math.round(height * density);
  const context = canvas.getContext("2d");
  context.scale(density, density);
  const thickness = Math.max(2, Math.min(width, height) / 140);
  // (0, 0) is the centre of the first pixel.
  const place = ({ x, y }) => [((x + 0.5) * width) / image.width, ((y + 0.5) * height) / image.height];
  const seen = (point) => point.score >= LEAST_SCORE;

  people.forEach(({ keypoints }, index) => {
    const limbs = new Path2D();
    for (const [from, to] of skeleton) {
      if (!seen(keypoints[from]) || !seen(keypoints[to])) continue;
      limbs.moveTo(...place(keypoints[from]));
      limbs.lineTo(...place(keypoints[to]));
    }
    const joints = new Path2D();
    for (const point of keypoints.filter(seen)) {
      const [x, y] = place(point);
      joints.moveTo(x + 1.6 * thickness, y);
      joints.arc(x, y, 1.6 * thickness, 0, 2 * Math.PI);
    }
    context.lineCap = "round";
    for (const [colour, extra] of [["#000b", 2], [personColour(index), 0]]) {
      context.strokeStyle = context.fillStyle = colour;
      context.lineWidth = thickness + extra;
      context.stroke(limbs);
      context.lineWidth = extra;
      if (extra) context.stroke(joints);
      context.fill(joints);
    }
  });
}
