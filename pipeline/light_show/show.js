// A stage of four lamps, driven by the clock of the music.

const $ = (id) => document.getElementById(id);
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

// Brightness of four lamps over time, from what `pack` of page.py wrote. Frame i belongs to the moment i / frameRate.
class Curves {
  constructor(packed, frameRate) {
    this.values = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    this.frames = this.values.length / 4;
    this.frameRate = frameRate;
  }

  // The mean over as long as a screen shows one picture: a curve has more frames than a screen, and a flash between two of its
  // pictures must not be lost. Who has asked for less motion sees the mean of half a second.
  level(lamp, seconds) {
    const middle = seconds * this.frameRate;
    const half = this.frameRate * (reducedMotion.matches ? 0.25 : 1 / 120);
    return this.mean(lamp, Math.ceil(middle - half), Math.floor(middle + half), Math.round(middle));
  }

  mean(lamp, first, last, nearest) {
    const from = Math.max(0, Math.min(first <= last ? first : nearest, this.frames - 1));
    const to = Math.max(from, Math.min(first <= last ? last : nearest, this.frames - 1));
    let sum = 0;
    for (let i = from; i <= to; i++) sum += this.values[lamp * this.frames + i];
    return sum / (to - from + 1) / 255;
  }
}

// The lamps within an element, set to what the curves say of a moment.
class Stage {
  constructor(element) {
    this.lamps = Array.from({ length: 4 }, () => {
      const lamp = document.createElement("div");
      lamp.className = "lamp";
      lamp.append(...["disc", "halo", "pool"].map((part) => Object.assign(document.createElement("i"), { className: part })));
      return lamp;
    });
    element.replaceChildren(...this.lamps);
  }

  show(curves, seconds) {
    this.lamps.forEach((lamp, i) => lamp.style.setProperty("--level", curves ? curves.level(i, seconds).toFixed(3) : 0));
  }
}

// Call `draw(seconds)` for every picture that the screen shows.
function follow(audio, draw) {
  const tick = () => {
    draw(audio.currentTime);
    requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
}

function playOrPause(audio) {
  if (audio.paused) return audio.play();
  audio.pause();
}

// Whether a key belongs to what has the focus: a text field, or a control that was reached by keyboard and is worked by this key.
function isForControl(event) {
  const target = event.target;
  if (event.ctrlKey || event.metaKey || event.altKey || target.matches("input:not([type=range])")) return true;
  if (target.matches("input[type=range]")) return event.key.startsWith("Arrow");
  return target.matches("button:focus-visible") && (event.key === " " || event.key === "Enter");
}

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
