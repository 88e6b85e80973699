// The page on which one rater chooses. The server says which pair is next; nothing is kept here that is not written down there.

const page = JSON.parse($("data").textContent);
const audio = $("music");
const SIDES = ["left", "right"];
const stages = { left: new Stage($("left")), right: new Stage($("right")) };
const RETRY_MS = 1000;
const SETTLE_MS = 300; // after a pair has come, in which a key is the end of a double stroke and no choice

let rater = "";
let state = null; // what the server said last
const curves = { left: null, right: null };
let shownAt = 0; // when the pair was shown, in ms
let busy = false; // while an answer is on its way: one key press, one choice

// -- talking to the server ---------------------------------------------------------------------------------------

// The server's answer. Where it does not answer, the same is asked until it does: what was chosen is not lost when it is restarted.
async function ask(path, body) {
  for (;;) {
    try {
      const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
      const reply = await fetch(path, options);
      const tree = await reply.json();
      $("trouble").textContent = "";
      if (!reply.ok) throw new Refused(tree.error);
      return tree;
    } catch (error) {
      if (error instanceof Refused) throw error;
      $("trouble").textContent =
        `The server does not answer. ${body ? "Your choice is kept here and sent when it does." : ""} Start it again with: ${page.command}`;
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

class Refused extends Error {}

// Ask, show what came, and let nothing else be asked meanwhile, nor before a new pair can have been seen.
async function turn(path, body) {
  if (busy) return;
  setBusy(true);
  let settle = 0;
  try {
    show(await ask(path, body));
    settle = SETTLE_MS;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    (state ? $("trouble") : $("refused")).textContent = error.message;
    if (!state) $("rater").select(); // the next name can be typed at once
  } finally {
    if (settle) setTimeout(() => setBusy(false), settle);
    else setBusy(false);
  }
}

function setBusy(value) {
  busy = value;
  for (const button of document.querySelectorAll("button[data-choice], button[data-action=undo]")) {
    const idle = !busy && !(button.dataset.action === "undo" && !state?.last);
    button.setAttribute("aria-disabled", String(!idle));
  }
}

// `what`: left, right, tie or skip. Which of the pair's sides is on the left is the pair's own.
function choose(what) {
  if (!state?.pair) return;
  const choice = state.pair[what]?.side ?? what;
  turn("/choose", { rater, pair: state.pair.key, choice, seconds: (performance.now() - shownAt) / 1000 });
}

const undo = () => state?.last && turn("/choose", { rater, pair: state.last, choice: "undo", seconds: 0 });

// -- showing -----------------------------------------------------------------------------------------------------

function show(next) {
  state = next;
  $("welcome").hidden = true;
  $("compare").hidden = !state.pair;
  $("end").hidden = Boolean(state.pair);
  $("notes").replaceChildren(...state.notes.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
  audio.pause();
  if (state.pair) showPair(state.pair);
  else showEnd();
}

function showPair(pair) {
  for (const side of SIDES) curves[side] = new Curves(pair[side].lights, pair.frame_rate);
  $("count").textContent = `${state.done + 1} of ${state.total}`;
  $("who").textContent = rater;
  $("song").textContent = pair.song;
  Object.assign($("progress"), { max: state.total, value: state.done });
  audio.src = pair.audio;
  shownAt = performance.now();
  $("compare").focus(); // so that a key belongs to the page, not to the button that was used last
  if (!reducedMotion.matches) play();
}

function showEnd() {
  audio.removeAttribute("src");
  audio.load();
  $("thanks").textContent = `All ${state.total} pairs are rated. Thank you, ${rater}.`;
  $("end").focus();
}

// A browser plays nothing before the page was touched; then the rater presses Space.
const play = () => audio.play()?.catch((error) => console.info(error.name));

function again() {
  audio.currentTime = 0;
  play();
}

follow(audio, (seconds) => {
  if (!state?.pair) return;
  for (const side of SIDES) stages[side].show(curves[side], seconds);
  const length = state.pair.seconds;
  $("played").style.transform = `scaleX(${Math.min(1, seconds / length)})`;
  $("clock").textContent = `${clock(seconds)} / ${clock(length)}`;
});

// -- keys and buttons --------------------------------------------------------------------------------------------

const actions = { play: () => playOrPause(audio), again, undo };
const keys = {
  " ": actions.play, r: again, u: undo, s: () => choose("skip"), t: () => choose("tie"),
  1: () => choose("left"), arrowleft: () => choose("left"), 2: () => choose("right"), arrowright: () => choose("right"),
};

addEventListener("keydown", (event) => {
  const act = keys[event.key.toLowerCase()];
  if (!act || !state || isForControl(event)) return;
  event.preventDefault();
  if (!event.repeat && (state.pair || act === undo)) act(); // a key held down is one choice
});

addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.choice) choose(button.dataset.choice);
  else if (button?.dataset.action) actions[button.dataset.action]();
});

$("welcome").addEventListener("submit", (event) => {
  event.preventDefault();
  rater = $("rater").value.trim().toLowerCase();
  $("refused").textContent = "";
  history.replaceState(null, "", `#${encodeURIComponent(rater)}`); // a reload knows the name
  turn(`/state?rater=${encodeURIComponent(rater)}`);
});

for (const name of ["play", "pause"])
  audio.addEventListener(name, () => ($("play").textContent = audio.paused ? "Play" : "Pause"));
audio.addEventListener("error", () => {
  if (state?.pair) setTimeout(() => audio.getAttribute("src") && audio.load(), RETRY_MS); // the server may be on its way back
});

$("rater").value = decodeURIComponent(location.hash.slice(1)) || $("rater").value;
$("rater").focus();
setBusy(false);
