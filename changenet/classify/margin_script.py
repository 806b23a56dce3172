"""The script behind the margin slider of the classify report.

It reads ``margin-data`` (``good`` and ``bad``: sorted float32 scores, base64; ``margin``) and recounts every decision
for the margin that the slider, the number field, a button with ``data-margin``, a drag in the histogram or the
address (``report.html#margin=0.42``, to share a choice) asks for. Scores and margins are compared as float32, as
PyTorch does.
"""

from __future__ import annotations

__all__ = ["MARGIN_SCRIPT"]

MARGIN_SCRIPT = """
"use strict";
{
  const data = fiducial.data("margin-data");
  const floats = text => new Float32Array(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
  const good = floats(data.good), bad = floats(data.bad);
  const element = id => document.getElementById(id);
  const show = (id, text) => { element(id).textContent = text; };
  const slider = element("margin-slider"), field = element("margin-field");

  // How many of the sorted scores are above the margin.
  function above(scores, margin) {
    let low = 0, high = scores.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (scores[middle] > margin) high = middle; else low = middle + 1;
    }
    return scores.length - low;
  }
  const decide = margin => [above(bad, Math.fround(margin)), above(good, Math.fround(margin))];

  // The shortest decimal, of at least four digits, that decides every row as the margin does.
  function shortest(margin) {
    const wanted = decide(margin).join();
    for (let digits = 4; digits < 17; digits++) {
      const text = String(Number(margin.toPrecision(digits)));
      if (decide(Number(text)).join() === wanted) return text;
    }
    return String(margin);
  }
  const share = (part, whole) => whole ? part / whole : null;
  const percent = value => value === null ? "–" : `${(100 * value).toFixed(2)}\\u202f%`;
  const plain = value => value === null ? "–" : value.toFixed(4);
  const count = value => String(value).replace(/\\B(?=(\\d{3})+$)/g, "\\u202f");

  let current = data.margin;
  function set(margin, from) {
    if (!Number.isFinite(Math.fround(margin))) return;  // no score is above such a margin: everything would pass
    current = margin;
    const [tp, fp] = decide(margin), fn = bad.length - tp, tn = good.length - fp;
    const recall = share(tp, bad.length), precision = share(tp, tp + fp), rate = share(fp, good.length);
    const text = shortest(margin);
    show("live-missed", count(fn));
    show("live-missed-hint", `${percent(share(fn, bad.length))} of ${count(bad.length)}`);
    show("live-alarms", count(fp));
    show("live-alarms-hint", `${percent(rate)} of ${count(good.length)}`);
    show("live-precision", plain(precision)); show("live-recall", plain(recall));
    show("live-f1", plain(share(2 * tp, 2 * tp + fp + fn)));
    for (const [id, value] of Object.entries({tp, fp, tn, fn})) show(`live-${id}`, count(value));
    element("live-missed").className = fn ? "bad" : "good";
    show("margin-yaml", `eval_margin: ${text}`);
    show("margin-override", `model.classify.eval_margin=${text}`);
    fiducial.place("margin-cursor", margin);
    if (rate !== null && recall !== null) fiducial.place("roc-dot", rate, recall);
    if (recall !== null) fiducial.place("pr-dot", recall, precision ?? 1);
    if (from !== slider) slider.value = margin;
    if (from !== field) field.value = text;
    for (const card of document.querySelectorAll("[data-score]")) {
      const fails = Number(card.dataset.score) > Math.fround(margin), defect = card.dataset.label === "1";
      const badge = card.querySelector(".badge");
      badge.textContent = fails === defect ? "right" : defect ? "missed defect" : "false alarm";
      badge.className = `badge ${fails === defect ? "good" : "bad"}`;
    }
  }
  function remember() { history.replaceState(null, "", `#margin=${shortest(current)}`); }
  function fromAddress() {
    const found = /^#margin=(.+)$/.exec(location.hash);
    if (found && found[1].trim() !== "") set(Number(decodeURIComponent(found[1])));
  }
  slider.addEventListener("input", () => set(Number(slider.value), slider));
  field.addEventListener("input", () => { if (field.value !== "") set(Number(field.value), field); });
  for (const control of [slider, field]) control.addEventListener("change", remember);
  for (const button of document.querySelectorAll("button[data-margin]")) {
    button.addEventListener("click", () => { set(Number(button.dataset.margin)); remember(); });
  }
  const histogram = element("score-histogram");
  if (histogram) {
    const drag = event => { if (event.buttons) set(fiducial.valueAt(histogram, event)); };
    histogram.style.cursor = "ew-resize";
    histogram.style.touchAction = "pan-y";  // sideways is ours, up and down scrolls the page
    histogram.addEventListener("pointerdown", drag);
    histogram.addEventListener("pointermove", drag);
    histogram.addEventListener("pointerup", remember);
  }
  addEventListener("hashchange", fromAddress);
  set(current);
  fromAddress();
}
"""
