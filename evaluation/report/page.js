// A film: one frame at a time, by a slider or by itself. Without this script all frames stand in a row, as on paper.
for (const film of document.querySelectorAll("[data-film]")) {
  const frames = [...film.querySelectorAll("li")];
  const slider = film.querySelector("input");
  const button = film.querySelector("button");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let timer = null;
  const show = () => frames.forEach((frame, k) => frame.classList.toggle("shown", k === Number(slider.value)));
  const step = () => {
    const next = (Number(slider.value) + 1) % frames.length;
    slider.value = next;
    show();
    timer = setTimeout(step, next === frames.length - 1 ? 2000 : 300);
  };
  const play = (on) => {
    clearTimeout(timer);
    timer = on ? setTimeout(step, 300) : null;
    button.textContent = on ? "Pause" : "Play";
  };
  film.classList.add("moving");
  film.querySelector(".controls").hidden = false;
  slider.addEventListener("input", () => { play(false); show(); });
  button.addEventListener("click", () => play(timer === null));
  still.addEventListener("change", () => play(!still.matches));
  show();
  play(!still.matches);
}
