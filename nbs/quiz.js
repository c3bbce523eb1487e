// Real or synthetic? One picture after the other, feedback at once, a score with Wilson's interval. Nothing is sent anywhere.
(() => {
  "use strict";
  const quiz = document.getElementById("cxr-quiz");
  if (!quiz || quiz.dataset.started) return;
  quiz.dataset.started = "yes";
  const part = (name) => quiz.querySelector(`[data-part="${name}"]`);
  const n = Number(quiz.dataset.n), columns = Number(quiz.dataset.columns);
  // the key holds, for each picture, which it is and what is said of it; it is scrambled so that a glance does not give it away
  const bytes = Uint8Array.from(atob(quiz.dataset.key), (c) => c.charCodeAt(0));
  const key = JSON.parse(new TextDecoder().decode(bytes.map((b, i) => b ^ ((37 * i + 91) & 255))));
  const z = 1.959963984540054; // the 97.5 % point of the normal distribution
  const wilson = (k, m) => {
    const p = k / m, centre = p + z * z / (2 * m), half = z * Math.sqrt(p * (1 - p) / m + z * z / (4 * m * m)), scale = 1 + z * z / m;
    return [k === 0 ? 0 : (centre - half) / scale, k === m ? 1 : (centre + half) / scale];
  };
  const percent = (x) => `${Math.round(100 * x)} %`;
  let at = 0, right = 0, answered = false, given = [];

  const place = (element, i, side) => {
    element.style.backgroundImage = quiz.querySelector("[data-sheet]").style.backgroundImage;
    element.style.backgroundSize = `${100 * columns}% auto`;
    element.style.backgroundPosition = `${100 * (i % columns) / (columns - 1)}% ${100 * Math.floor(i / columns) / (Math.ceil(n / columns) - 1)}%`;
    if (side) element.style.width = element.style.height = side;
  };
  const score = () => {
    const done = given.length;
    if (!done) return "No picture judged yet.";
    const [low, high] = wilson(right, done);
    part("score").dataset.low = low;
    part("score").dataset.high = high;
    return `${right} of ${done} right: ${percent(right / done)}, 95 % interval ${percent(low)} to ${percent(high)}.`;
  };
  const show = () => {
    answered = false;
    place(part("picture"), at);
    part("picture").setAttribute("aria-label", `Picture ${at + 1} of ${n}: a chest X-ray, real or synthetic`);
    part("count").textContent = `Picture ${at + 1} of ${n}`;
    part("feedback").textContent = "";
    part("feedback").removeAttribute("data-right");
    for (const b of quiz.querySelectorAll("[data-answer]")) { b.disabled = false; b.removeAttribute("aria-pressed"); }
    part("next").hidden = true;
    part("next").textContent = at + 1 < n ? "Next picture" : "See the result";
    part("score").textContent = score();
  };
  const answer = (said) => {
    if (answered || at >= n) return;
    answered = true;
    const truth = key[at].real ? "real" : "synthetic", ok = said === truth;
    given.push(said);
    right += ok;
    part("feedback").textContent = `${ok ? "Right" : "Wrong"}: ${truth}. ${key[at].what}`;
    part("feedback").dataset.right = ok;
    for (const b of quiz.querySelectorAll("[data-answer]")) {
      b.disabled = true;
      if (b.dataset.answer === said) b.setAttribute("aria-pressed", "true");
    }
    part("score").textContent = score();
    part("next").hidden = false;
    part("next").focus();
  };
  const finish = () => {
    part("play").hidden = true;
    part("result").hidden = false;
    const [low, high] = wilson(right, n);
    const verdict = low > 0.5 ? "The interval lies above 50 %: you told them apart better than a coin would."
      : high < 0.5 ? "The interval lies below 50 %: you saw a difference and read it the wrong way round."
        : "The interval contains 50 %: with these pictures you cannot be told from a coin.";
    const said = (kind) => given.filter((g, i) => key[i].real && g === kind).length, all = key.filter((k) => k.real).length;
    const fooled = given.filter((g, i) => !key[i].real && g === "real").length;
    part("verdict").textContent = `${score()} ${verdict} Real ones called real: ${said("real")} of ${all}; synthetic ones called real: ${fooled} of ${n - all}.`;
    part("gallery").replaceChildren(...key.map((k, i) => {
      const item = document.createElement("li"), picture = document.createElement("div"), text = document.createElement("span");
      const ok = (given[i] === "real") === k.real;
      picture.className = "quiz-tile";
      picture.setAttribute("role", "img");
      picture.setAttribute("aria-label", `Picture ${i + 1}`);
      place(picture, i);
      text.textContent = `${i + 1}: ${k.real ? "real" : "synthetic"}, ${ok ? "right" : "wrong"}`;
      item.append(picture, text);
      return item;
    }));
    part("verdict").focus();
  };
  const next = () => {
    if (!answered) return;
    at += 1;
    if (at < n) { show(); quiz.querySelector("[data-answer]").focus(); } else finish();
  };
  const again = () => {
    at = right = 0;
    given = [];
    part("result").hidden = true;
    part("play").hidden = false;
    show();
    quiz.querySelector("[data-answer]").focus();
  };
  for (const b of quiz.querySelectorAll("[data-answer]")) b.addEventListener("click", () => answer(b.dataset.answer));
  part("next").addEventListener("click", next);
  part("again").addEventListener("click", again);
  // R and S answer while the focus is inside the quiz, N goes on; Tab, Enter and Space work as everywhere
  quiz.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const what = { r: () => answer("real"), s: () => answer("synthetic"), n: next }[e.key.toLowerCase()];
    if (!what || part("play").hidden) return;
    e.preventDefault();
    e.stopPropagation(); // S is the search key of some renderers
    what();
  });
  part("start").hidden = true;
  part("play").hidden = false;
  show();
})();
