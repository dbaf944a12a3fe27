// The threshold page: no server, no library. Each set of maps is a script beside the page that calls adlibMaps(data).
"use strict";

(() => {
  const byId = (id) => document.getElementById(id);
  const MARKED = [230, 120, 0]; // orange and blue differ for every kind of colour vision
  const STATES = {
    found: "✓ found",
    missed: "✗ missed",
    "false-alarm": "⚠ false alarm",
    passed: "· passed",
  };
  let set = null; // the set that is shown
  const waiting = {}; // category -> functions to call with its data
  const loaded = {};

  // -- reading ---------------------------------------------------------------------------------------------------------

  function bytes(base64) {
    return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  }

  async function inflate(base64) {
    const stream = new Blob([bytes(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  function photograph(source) {
    return new Promise((resolve, reject) => {
      const image = new Image();
      image.onload = () => resolve(image);
      image.onerror = reject;
      image.src = source;
    });
  }

  window.adlibMaps = async (data) => {
    const pixels = data.size * data.size;
    const maps = await inflate(data.maps); // one byte a pixel, image after image
    const masks = await inflate(data.masks); // one bit a pixel
    const bit = (i) => (masks[i >> 3] >> (7 - (i & 7))) & 1;
    data.images = await Promise.all(data.images.map(async (image, i) => {
      const map = maps.subarray(i * pixels, (i + 1) * pixels);
      const truth = Uint8Array.from({ length: pixels }, (_, j) => bit(i * pixels + j));
      return { ...image, photo: await photograph(image.photo), map, truth, highest: map.reduce((a, b) => Math.max(a, b), 0) };
    }));
    data.images.sort((a, b) => b.label - a.label); // defects first: they are what one looks for
    loaded[data.category] = data;
    (waiting[data.category] || []).forEach((done) => done(data));
  };

  function load(category) {
    if (loaded[category]) return Promise.resolve(loaded[category]);
    return new Promise((resolve, reject) => {
      (waiting[category] ||= []).push(resolve);
      const script = document.createElement("script");
      script.src = `threshold/${category}.js`;
      script.onerror = () => reject(new Error(`threshold/${category}.js is missing; build the site again`));
      document.head.append(script);
    });
  }

  // -- drawing ---------------------------------------------------------------------------------------------------------

  function makeCards() {
    byId("cards").replaceChildren(...set.images.map((image) => {
      const card = document.createElement("figure");
      const canvas = document.createElement("canvas");
      canvas.width = canvas.height = set.size;
      canvas.setAttribute("role", "img");
      const caption = document.createElement("figcaption");
      const kind = document.createElement("span");
      kind.textContent = image.defect;
      const state = document.createElement("strong");
      caption.append(kind, state);
      card.append(canvas, caption);
      Object.assign(image, { card, canvas, state });
      return card;
    }));
  }

  // True where one of the four neighbours is on the other side: an outline of two pixels, one on each side.
  function onOutline(truth, size, i) {
    const x = i % size;
    const here = truth[i];
    const other = (j, inside) => inside && truth[j] !== here;
    return other(i - 1, x > 0) || other(i + 1, x < size - 1)
      || other(i - size, i >= size) || other(i + size, i < size * (size - 1));
  }

  function drawCard(image, threshold) {
    const { size } = set;
    const context = image.canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image.photo, 0, 0, size, size);
    const picture = context.getImageData(0, 0, size, size);
    const pixel = picture.data;
    const showTruth = byId("truth").checked;
    const showScores = byId("scores").checked;
    for (let i = 0; i < image.map.length; i++) {
      const at = 4 * i;
      if (showScores) pixel[at] = pixel[at + 1] = pixel[at + 2] = image.map[i];
      if (image.map[i] >= threshold) {
        for (let c = 0; c < 3; c++) pixel[at + c] = 0.4 * pixel[at + c] + 0.6 * MARKED[c];
      }
      if (showTruth && onOutline(image.truth, size, i)) {
        pixel[at] = 90; pixel[at + 1] = 190; pixel[at + 2] = 255;
      }
    }
    context.putImageData(picture, 0, 0);
  }

  function drawStrip() {
    const strip = byId("strip");
    const width = 600;
    const height = 84;
    strip.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const make = (name, attributes, text) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      if (text) element.textContent = text;
      return element;
    };
    const x = (step) => (width * (step - 1)) / 254;
    const parts = [
      make("text", { x: width, y: 10, "text-anchor": "end" }, "▲ defects, by their highest score"),
      make("text", { x: width, y: 81, "text-anchor": "end" }, "○ good images, by their highest score"),
      make("line", { id: "strip-line", y1: 0, y2: height }),
    ];
    const seen = {};
    for (const image of set.images) {
      const place = `${image.label}/${image.highest}`;
      seen[place] = (seen[place] || 0) + 1;
      const y = (image.label ? 36 : 78) - 5 * (seen[place] - 1);
      const points = `${x(image.highest) - 4},${y + 4} ${x(image.highest) + 4},${y + 4} ${x(image.highest)},${y - 4}`;
      parts.push(image.label
        ? make("polygon", { points, class: "defect" })
        : make("circle", { cx: x(image.highest), cy: y, r: 4, class: "good" }));
    }
    strip.replaceChildren(...parts);
  }

  // -- counting --------------------------------------------------------------------------------------------------------

  const share = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)} %` : "–");

  function update() {
    const threshold = Number(byId("threshold").value);
    const filter = byId("filter").value;
    const count = { found: 0, missed: 0, "false-alarm": 0, passed: 0 };
    const kinds = {};
    let marked = 0;
    let truth = 0;
    let both = 0;
    for (const image of set.images) {
      for (let i = 0; i < image.map.length; i++) {
        const above = image.map[i] >= threshold;
        marked += above;
        truth += image.truth[i];
        both += above && image.truth[i];
      }
      const above = image.highest >= threshold;
      const state = image.label ? (above ? "found" : "missed") : above ? "false-alarm" : "passed";
      count[state] += 1;
      if (image.label) {
        kinds[image.defect] ||= [0, 0];
        kinds[image.defect][0] += above;
        kinds[image.defect][1] += 1;
      }
      image.state.textContent = STATES[state];
      image.card.className = state;
      image.card.hidden = filter !== "all" && filter !== state;
      image.canvas.setAttribute("aria-label", `${image.name}, ${image.defect}: ${STATES[state].slice(2)}`);
      if (!image.card.hidden) drawCard(image, threshold);
    }
    const value = set.low + (threshold * (set.high - set.low)) / 255;
    byId("threshold-value").textContent = value.toPrecision(3);
    byId("threshold").setAttribute("aria-valuetext", value.toPrecision(3));
    byId("n-found").textContent = `${count.found} of ${count.found + count.missed}`;
    byId("n-false").textContent = `${count["false-alarm"]} of ${count["false-alarm"] + count.passed}`;
    byId("recall").textContent = share(both, truth);
    byId("precision").textContent = share(both, marked);
    byId("kinds").textContent = "found by kind: "
      + Object.entries(kinds).map(([kind, [found, all]]) => `${kind} ${found}/${all}`).join(", ");
    byId("none-shown").hidden = set.images.some((image) => !image.card.hidden);
    const line = byId("strip-line");
    line.setAttribute("x1", (600 * (threshold - 1)) / 254);
    line.setAttribute("x2", (600 * (threshold - 1)) / 254);
  }

  let pending = false;
  function updateSoon() {
    if (pending || !set) return;
    pending = true;
    requestAnimationFrame(() => {
      pending = false;
      update();
    });
  }

  // -- the page --------------------------------------------------------------------------------------------------------

  async function show(category) {
    let data;
    try {
      data = await load(category);
    } catch (error) {
      byId("cards").textContent = error.message;
      return;
    }
    if (byId("category").value !== category) return; // another one was chosen while this one was read
    set = data;
    makeCards();
    drawStrip();
    byId("threshold").value = set.threshold;
    update();
  }

  window.adlibShown = () => set?.category; // for the browser test

  function step(by) {
    byId("threshold").value = Number(byId("threshold").value) + by;
    updateSoon();
  }

  document.addEventListener("DOMContentLoaded", () => {
    const script = document.createElement("script");
    script.src = "threshold/sets.js"; // calls adlibSets with the categories at hand
    script.onerror = () => { byId("cards").textContent = "No maps beside this page: build the site with `make site`."; };
    window.adlibSets = (categories) => {
      byId("category").replaceChildren(...categories.map((category) => new Option(category)));
      if (categories.length) show(categories[0]);
      else byId("cards").textContent = "No maps beside this page: they were left out when the site was built.";
    };
    document.head.append(script);
    byId("category").addEventListener("change", (event) => show(event.target.value));
    byId("threshold").addEventListener("input", updateSoon);
    for (const id of ["filter", "truth", "scores"]) byId(id).addEventListener("change", updateSoon);
    byId("less").addEventListener("click", () => step(-1));
    byId("more").addEventListener("click", () => step(1));
    byId("reset").addEventListener("click", () => {
      byId("threshold").value = set.threshold;
      updateSoon();
    });
  });
})();
