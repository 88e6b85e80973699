// The page of one song: four lamps in time with the music, and their curves under a playhead.

const { curves: packed, frame_rate: frameRate } = JSON.parse($("data").textContent);
const curves = new Curves(packed, frameRate);
const audio = $("music");
const stage = new Stage($("stage"));
const scrub = $("scrub");
const canvas = $("canvas");
const STEP_SECONDS = 5;
const LANE_GAP = 6; // pixels between the curves of two lamps

const length = () => (Number.isFinite(audio.duration) ? audio.duration : curves.frames / frameRate);
const play = () => audio.play()?.catch((error) => console.info(error.name)); // what is wrong is said on "error"

function seek(seconds) {
  audio.currentTime = Math.max(0, Math.min(seconds, length()));
}

// Each lamp's curve in a lane of its own, in its colour. A column of pixels holds many frames: its mean is filled, its highest drawn.
function drawCurves() {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const context = canvas.getContext("2d");
  canvas.width = width * devicePixelRatio;
  canvas.height = height * devicePixelRatio;
  context.scale(devicePixelRatio, devicePixelRatio);
  const lane = (height - 3 * LANE_GAP) / 4;
  for (let lamp = 0; lamp < 4; lamp++) {
    const floor = (lamp + 1) * lane + lamp * LANE_GAP;
    const colour = getComputedStyle(document.documentElement).getPropertyValue(`--lamp-${lamp + 1}`);
    context.fillStyle = "#12141b";
    context.fillRect(0, floor - lane, width, lane);
    for (let x = 0; x < width; x++) {
      const { mean, highest } = column(lamp, x / width, (x + 1) / width);
      context.globalAlpha = 0.4;
      context.fillStyle = colour;
      context.fillRect(x, floor - highest * lane, 1, highest * lane);
      context.globalAlpha = 1;
      context.fillRect(x, floor - mean * lane, 1, mean * lane);
    }
  }
}

function column(lamp, from, to) {
  const frames = length() * frameRate;
  const first = Math.floor(from * frames);
  const last = Math.max(first, Math.ceil(to * frames) - 1);
  if (first >= curves.frames) return { mean: 0, highest: 0 };
  let highest = 0;
  for (let i = first; i <= Math.min(last, curves.frames - 1); i++)
    highest = Math.max(highest, curves.values[lamp * curves.frames + i] / 255);
  return { mean: curves.mean(lamp, first, last, first), highest };
}

follow(audio, (seconds) => {
  stage.show(curves, seconds);
  const part = Math.min(1, seconds / length());
  $("head").style.transform = `translateX(${100 * part}%)`;
  if (!scrub.matches(":active")) scrub.value = seconds;
  $("clock").textContent = `${clock(seconds)} / ${clock(length())}`;
});

const actions = { play: () => playOrPause(audio), again: () => (seek(0), play()) };
const keys = {
  " ": actions.play, r: actions.again,
  arrowleft: () => seek(audio.currentTime - STEP_SECONDS), arrowright: () => seek(audio.currentTime + STEP_SECONDS),
};

addEventListener("keydown", (event) => {
  const act = keys[event.key.toLowerCase()];
  if (!act || isForControl(event)) return;
  event.preventDefault();
  act();
});
addEventListener("click", (event) => actions[event.target.closest("button")?.dataset.action]?.());
scrub.addEventListener("input", () => seek(Number(scrub.value)));
canvas.addEventListener("click", (event) => seek((event.offsetX / canvas.clientWidth) * length()));
for (const name of ["play", "pause"])
  audio.addEventListener(name, () => ($("play").textContent = audio.paused ? "Play" : "Pause"));
audio.addEventListener("error", () => ($("trouble").textContent = "The music cannot be played: its file must lie beside this page."));
audio.addEventListener("durationchange", () => {
  scrub.max = length();
  drawCurves();
});
addEventListener("resize", drawCurves);
scrub.max = length();
drawCurves();
