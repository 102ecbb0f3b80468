// What the viewer is told with: methods, modes, zoom, seeds.
Object.assign(Viewer.prototype, {
  build(place) {
    const select = (rows, name, title) => {
      const made = element("select", { class: name, onchange: (event) => this.set({ [name]: event.target.value, ...(name === "other" ? { place: null } : {}) }) },
        ...rows.map((row) => element("option", { value: row.name }, row.label)));
      this[`${name}Select`] = made;
      return element("label", {}, title, made);
    };
    this.modes = MODES.map(([name, title]) => element("button", { type: "button", "data-mode": name, onclick: () => this.set({ mode: name }) }, title));
    this.zoomOut = element("button", { type: "button", "aria-label": "Zoom out", onclick: () => this.zoomBy(1 / 1.6) }, "−");
    this.zoomIn = element("button", { type: "button", "aria-label": "Zoom in", onclick: () => this.zoomBy(1.6) }, "+");
    this.zoomReset = element("button", { type: "button", onclick: () => this.zoomTo(1) }, "1×");
    this.thumbs = element("ul", { class: "thumbs", "aria-label": "Pairs, the worst first" });
    this.panes = element("div", { class: "panes" });
    this.amount = element("div", { class: "amount" });
    this.prompt = element("p", { class: "prompt", role: "status" });
    this.root = element("div", { class: "viewer" },
      element("div", { class: "bar-of" }, select(this.rows.filter((row) => row.name !== this.data.reference || this.rows.length < 2), "other", "Method"), select(this.bases, "base", "beside")),
      element("div", { class: "bar-of" },
        element("div", { class: "modes", role: "group", "aria-label": "Way of comparing" }, ...this.modes),
        element("div", { class: "modes", role: "group", "aria-label": "Zoom of all panes" }, this.zoomOut, this.zoomReset, this.zoomIn)),
      this.thumbs, this.prompt, this.panes, this.amount,
      element("p", { class: "soft hint" }, "On an image: + and − zoom, arrow keys move, 0 shows all of it; drag, or pinch. One zoom holds for all panes."));
    place.append(this.root);
  },

  drawControls(places) {
    this.otherSelect.value = this.state.other;
    this.baseSelect.value = this.state.base;
    this.modes.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.mode === this.state.mode)));
    const focused = this.thumbs.contains(document.activeElement);
    this.thumbs.replaceChildren(...places.map((place) => {
      const here = place === this.state.place;
      const uri = this.pictures.uris[this.pictures.held[this.state.other][place]];
      const words = this.psnrInWords(this.state.other, place).replace("PSNR ", "");
      const seed = this.pictures.seeds[place] ?? place;
      return element("li", {}, element("button", { type: "button", "aria-pressed": String(here), "aria-label": `Seed ${seed}, ${words}`, onclick: () => this.set({ place }) },
        element("img", { src: uri, alt: "" }), words || "–"));
    }));
    if (focused) one("[aria-pressed=true]", this.thumbs).focus();
    const words = this.psnrInWords(this.state.other);
    const sentence = this.seedInWords();
    this.prompt.textContent = `${sentence[0].toUpperCase()}${sentence.slice(1)}${this.state.mode === "all" || !words ? "" : ` · ${words}`}`;
  },

  drawAmount() {
    const { mode } = this.state;
    const range = (title, name, least, most, step) => element("label", { class: "amount" }, title,
      element("input", { type: "range", min: least, max: most, step, value: this.state[name], "data-of": mode, oninput: (event) => { this.state[name] = Number(event.target.value); this.apply(); } }));
    const flip = () => { this.state.shown = this.state.shown === "other" ? "base" : "other"; this.apply(); };
    const offers = {
      slide: () => range("Divide at", "amount", 0, 100, 0.5),
      onion: () => range("Opacity", "amount", 0, 100, 1),
      difference: () => range("Amplify", "gain", 1, 32, 1),
      switch: () => (this.flipButton = element("button", { type: "button", class: "flip", onclick: flip }, "")),
    };
    this.flip = flip;
    this.amount.replaceChildren(...(offers[mode] ? [offers[mode]()] : []));
  },

  zoomBy(factor, x = 0.5, y = 0.5) { this.zoomTo(this.view.zoom * factor, x, y); },

  // Keeps the place (x, y) of the pane, as shares of it, under the pointer.
  zoomTo(wanted, x = 0.5, y = 0.5) {
    const { view } = this;
    const zoom = clamp(wanted, 1, MOST_ZOOM);
    view.x = (view.x + x) * (zoom / view.zoom) - x;
    view.y = (view.y + y) * (zoom / view.zoom) - y;
    view.zoom = zoom;
    this.moveBy(0, 0);
  },

  moveBy(dx, dy) {
    const most = this.view.zoom - 1;
    this.view.x = clamp(this.view.x + dx, 0, most);
    this.view.y = clamp(this.view.y + dy, 0, most);
    this.apply();
  },
});
