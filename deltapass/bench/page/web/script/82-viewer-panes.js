// The panes: what lies over what, and how it is moved.
Object.assign(Viewer.prototype, {
  draw(places) {
    const { mode, base, other } = this.state;
    this.drawControls(places);
    this.drawAmount();
    const made = {
      side: () => [this.pane([base], this.label(base), this.psnrInWords(base)), this.pane([other], this.label(other), this.psnrInWords(other)), this.differencePane()],
      all: () => this.rows.filter((row) => this.state.place in this.pictures.held[row.name]).map((row) => this.pane([row.name], row.label, this.psnrInWords(row.name))),
      difference: () => [this.differencePane()],
    }[mode] || (() => [this.pane([base, other], `${this.label(base)} and ${this.label(other)}`, "")]);
    this.panes.className = `panes ${{ side: "", all: "many" }[mode] ?? "one"} ${mode === "slide" ? "sliding" : ""}`;
    this.panes.replaceChildren(...made());
    this.apply();
  },

  pane(names, title, words) {
    const sheets = names.map((name) => element("div", { class: "sheet" }, this.image(name)));
    const stage = this.stage(title, ...sheets);
    if (names.length === 2) {
      const tags = names.map((name, k) => element("span", { class: `corner ${k ? "right" : "left"}`, "aria-hidden": "true" }, this.label(name)));
      stage.append(...tags);
      if (this.state.mode === "slide") stage.append(element("div", { class: "divide" }));
    }
    return element("figure", { class: "pane" }, stage, element("figcaption", {}, element("b", {}, title), words ? element("span", {}, words) : null));
  },

  differencePane() {
    const canvas = element("canvas", { role: "img", "aria-label": `Difference of ${this.label(this.state.base)} and ${this.label(this.state.other)}, ${this.seedInWords()}` });
    const stage = this.stage("Difference", element("div", { class: "sheet" }, canvas));
    const images = [this.state.base, this.state.other].map((name) => { const made = new Image(); made.src = this.image(name).src; return made; });
    this.gainShown = element("span", {}, "");
    Promise.all(images.map((image) => image.decode())).then(() => { this.difference = subtracted(canvas, ...images); this.apply(); this.fit(canvas); }).catch(() => {});
    return element("figure", { class: "pane" }, stage, element("figcaption", {}, element("b", {}, "Difference"), this.gainShown));
  },

  stage(title, ...children) {
    const made = element("div", { class: "stage", tabindex: 0, role: "group", "aria-label": `${title}; plus and minus zoom, arrow keys move` }, ...children);
    this.listen(made);
    return made;
  },

  // Panes take the image's shape; small images are enlarged sharply.
  fit(image) {
    const [wide, tall] = [image.naturalWidth || image.width, image.naturalHeight || image.height];
    for (const stage of all(".stage", this.panes)) {
      stage.style.aspectRatio = `${wide} / ${tall}`;
      stage.classList.toggle("sharp", stage.clientWidth * this.view.zoom > wide * 1.5);
    }
  },

  apply() {
    const { view, state } = this;
    for (const sheet of all(".stage img, .stage canvas", this.panes)) {
      sheet.style.transform = `translate(${-view.x * 100}%, ${-view.y * 100}%) scale(${view.zoom})`;
    }
    this.panes.classList.toggle("zoomed", view.zoom > 1);
    this.zoomReset.textContent = `${written(view.zoom, view.zoom < 1.05 ? 0 : 1)}×`;
    this.zoomReset.setAttribute("aria-label", `${this.zoomReset.textContent}: show the whole image`);
    this.zoomOut.disabled = view.zoom <= 1;
    this.zoomIn.disabled = view.zoom >= MOST_ZOOM;
    const [, top] = all(".sheet", this.panes);
    const part = one(".divide", this.panes);
    if (state.mode === "slide") {
      top.style.clipPath = `inset(0 0 0 ${state.amount}%)`;
      part.style.left = `${state.amount}%`;
      one("input", this.amount).value = state.amount;
    }
    if (state.mode === "onion") top.style.opacity = state.amount / 100;
    if (state.mode === "switch") {
      top.style.visibility = state.shown === "other" ? "visible" : "hidden";
      const [left, right] = all(".corner", this.panes);
      left.hidden = state.shown === "other";
      right.hidden = state.shown !== "other";
      const next = state.shown === "other" ? state.base : state.other;
      this.flipButton.textContent = `Show ${this.label(next)}`;
    }
    if (this.difference && (state.mode === "difference" || state.mode === "side")) {
      this.difference(state.gain);
      this.gainShown.textContent = `${state.gain} times as strong`;
    }
  },

  listen(stage) {
    stage.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
      if (move && this.view.zoom > 1) this.moveBy(...move);
      else if (event.key === "+" || event.key === "=") this.zoomBy(1.6);
      else if (event.key === "-") this.zoomBy(1 / 1.6);
      else if (event.key === "0") this.zoomTo(1);
      else if (event.key === " " && this.state.mode === "switch") this.flip();
      else return;
      event.preventDefault();
    });
    stage.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      const box = stage.getBoundingClientRect();
      this.zoomBy(Math.exp(-event.deltaY / 120), (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    }, { passive: false });
    stage.addEventListener("dblclick", (event) => {
      const box = stage.getBoundingClientRect();
      this.zoomTo(this.view.zoom > 1 ? 1 : 4, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    });
    this.listenToPointers(stage);
  },

  // One finger divides or moves, two zoom.
  listenToPointers(stage) {
    const down = new Map();
    const share = (event) => { const box = stage.getBoundingClientRect(); return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]; };
    stage.addEventListener("pointerdown", (event) => {
      down.set(event.pointerId, share(event));
      stage.setPointerCapture(event.pointerId);
      if (this.state.mode === "slide" && down.size === 1) this.divideAt(share(event)[0]);
    });
    stage.addEventListener("pointermove", (event) => {
      if (!down.has(event.pointerId)) return;
      const [before, now] = [down.get(event.pointerId), share(event)];
      const other = [...down].find(([key]) => key !== event.pointerId);
      down.set(event.pointerId, now);
      if (other) {
        const far = (point) => Math.hypot(point[0] - other[1][0], point[1] - other[1][1]) || 1e-3;
        this.zoomBy(far(now) / far(before), (now[0] + other[1][0]) / 2, (now[1] + other[1][1]) / 2);
      } else if (this.state.mode === "slide") this.divideAt(now[0]);
      else this.moveBy(before[0] - now[0], before[1] - now[1]);
    });
    for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, (event) => down.delete(event.pointerId));
  },

  divideAt(share) {
    this.state.amount = clamp(share * 100, 0, 100);
    this.apply();
  },
});

// A function that paints |a - b|, so many times as strong.
function subtracted(canvas, first, second) {
  const [wide, tall] = [first.naturalWidth, first.naturalHeight];
  Object.assign(canvas, { width: wide, height: tall });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const pixels = (image) => { context.drawImage(image, 0, 0, wide, tall); return context.getImageData(0, 0, wide, tall); };
  const [mine, theirs] = [pixels(first), pixels(second)];
  return (gain) => {
    const out = context.createImageData(wide, tall);
    for (let k = 0; k < out.data.length; k += 1) out.data[k] = k % 4 === 3 ? 255 : Math.abs(mine.data[k] - theirs.data[k]) * gain;
    context.putImageData(out, 0, 0);
  };
}
