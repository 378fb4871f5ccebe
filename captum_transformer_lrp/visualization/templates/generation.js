"use strict";
// Pointing at a written word colours the words that it comes from; a tap or Enter keeps it so.
(() => {
  const words = [...document.querySelectorAll("[data-word]")];
  const photos = [...document.querySelectorAll("[data-photo]")];
  const note = document.getElementById("from");
  const hint = note.textContent;
  let kept = null;

  const show = (chosen) => {
    const values = chosen ? chosen.dataset.from.split(" ").map(Number) : [];
    const most = Math.max(...values.map(Math.abs), 1e-30);
    words.forEach((word, place) => {
      const value = values[place] || 0;
      const colour = value > 0 ? "230,159,0" : "86,180,233";
      word.style.backgroundColor = value ? `rgba(${colour},${Math.abs(value) / most})` : "";
      word.classList.toggle("chosen", word === chosen);
      if (word.dataset.from) word.setAttribute("aria-pressed", String(word === kept));
    });
    const over = chosen && chosen.dataset.over ? chosen.dataset.over.split(" ") : [];
    photos.forEach((photo, number) => {
      photo.hidden = !over[number];
      if (over[number]) photo.src = over[number];
    });
    const best = words
      .map((word, place) => [values[place] || 0, word.textContent])
      .filter(([value]) => value > 0)
      .sort(([one], [other]) => other - one)
      .slice(0, 5)
      .map(([value, text]) => `${text} (${value.toPrecision(2)})`);
    note.textContent = chosen ? `${chosen.textContent} ← ${best.join(", ")}` : hint;
  };

  for (const word of words) {
    if (!word.dataset.from) continue;
    word.addEventListener("pointerenter", (event) => {
      if (event.pointerType === "mouse" && !kept) show(word);
    });
    word.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") show(kept);
    });
    word.addEventListener("focus", () => kept || show(word));
    word.addEventListener("click", () => {
      kept = kept === word ? null : word;
      show(kept);
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    kept = null;
    show(null);
  });
})();
