// Images side by side. One place of the manifest, two methods, one zoom for all panes.
const MODES = [["side", "Side by side"], ["slide", "Slider"], ["onion", "Onion skin"], ["switch", "Switch"], ["difference", "Difference"], ["all", "All methods"]];
const MOST_ZOOM = 16;

class Viewer {
  constructor(section, place, data) {
    this.section = section;
    this.data = data;
    this.pictures = data.pictures;
    this.rows = data.rows.filter((row) => Object.keys(this.pictures.held[row.name] || {}).length);
    this.bases = this.rows.filter((row) => this.pictures.psnr[row.name]);
    this.state = { base: data.reference, other: null, place: null, mode: "side", amount: 50, gain: 4, shown: "other" };
    this.view = { zoom: 1, x: 0, y: 0 };
    this.state.other = this.rows.filter((row) => row.name !== data.reference).sort((a, b) => this.worst(a) - this.worst(b))[0].name;
    this.build(place);
    section.addEventListener("picked", () => {
      const name = section.dataset.picked;
      if (name !== this.state.base && this.rows.some((row) => row.name === name)) this.set({ other: name, place: null });
    });
    this.set({});
  }

  label(name) { return this.rows.find((row) => row.name === name).label; }

  psnr(name, place, base = this.state.base) {
    const found = (this.pictures.psnr[base][name] || {})[place];
    return found === undefined ? NaN : found === null ? Infinity : found;
  }

  worst(row) { return Math.min(...Object.keys(this.pictures.held[row.name]).map((place) => this.psnr(row.name, place)).filter((value) => !Number.isNaN(value)), Infinity); }

  // Places that both have, the worst pair first.
  places() {
    const [mine, theirs] = [this.state.base, this.state.other].map((name) => this.pictures.held[name]);
    const value = (place) => { const found = this.psnr(this.state.other, place); return Number.isNaN(found) ? Infinity : found; };
    return Object.keys(mine).filter((place) => place in theirs).sort((a, b) => value(a) - value(b) || a - b);
  }

  set(change) {
    Object.assign(this.state, change);
    if (this.state.base === this.state.other) this.state.other = this.rows.find((row) => row.name !== this.state.base).name;
    const places = this.places();
    if (!places.includes(this.state.place)) this.state.place = places[0];
    this.draw(places);
  }

  image(name, extra = {}) {
    const uri = this.pictures.uris[this.pictures.held[name][this.state.place]];
    return element("img", { src: uri, alt: `${this.label(name)}, ${this.seedInWords()}`, draggable: "false", onload: (event) => this.fit(event.target), ...extra });
  }

  seedInWords() {
    const seed = this.pictures.seeds[this.state.place];
    const prompt = this.pictures.prompts[this.state.place];
    return [seed === undefined ? `image ${this.state.place}` : `seed ${seed}`, prompt].filter(Boolean).join(": ");
  }

  psnrInWords(name, place = this.state.place) {
    const value = this.psnr(name, place);
    if (name === this.state.base) return "what it is compared with";
    return Number.isNaN(value) ? "" : value === Infinity ? "equal pixels" : `PSNR ${written(value, 1)} dB`;
  }
}
