// The margin lab: draws the tabulated curves of the losses that the controls select.
(() => {
  const tables = JSON.parse(document.getElementById("lab-tables").textContent);
  const charts = JSON.parse(document.getElementById("lab-charts").textContent);
  const contexts = Object.fromEntries(tables.contexts.map((axis) => [axis.name, { axis, index: axis.default }]));
  const slots = [...document.querySelectorAll("#lab fieldset[data-slot]")].map((element, number) => ({
    element, number, name: "", parameters: {},
  }));
  const decoded = new Map();

  function decode(text, kind) {
    if (!decoded.has(text)) {
      const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
      const view = new DataView(bytes.buffer);
      const read = kind === "signed" ? (at) => view.getInt16(at, true) : (at) => view.getUint16(at, true);
      decoded.set(text, Array.from({ length: bytes.length / 2 }, (_, number) => read(2 * number)));
    }
    return decoded.get(text);
  }

  // The axis of this name for a slot's loss, and the index that the axis's control has selected.
  function selectionOf(slot, name) {
    return slot.parameters[name] || contexts[name];
  }

  // The index of the slot's combination of axis values in a table; the last axis varies fastest.
  function combinationIndex(slot, part, overrides = {}) {
    return part.axes.reduce((number, name) => {
      const { axis, index } = selectionOf(slot, name);
      return number * axis.values.length + (name in overrides ? overrides[name] : index);
    }, 0);
  }

  function curve(slot, part) {
    const number = combinationIndex(slot, part);
    let start = 0;
    for (let before = 0; before < number; before += 1) start += part.lengths[before];
    const nodes = decode(part.nodes, "unsigned"), values = decode(part.numbers, "signed");
    return Array.from({ length: part.lengths[number] }, (_, at) => ({
      angle: (nodes[start + at] * 180) / tables.steps, value: values[start + at] * part.factor,
    }));
  }

  function row(slot, part, overrides) {
    const start = combinationIndex(slot, part, overrides) * part.length;
    return decode(part.numbers, "signed").slice(start, start + part.length).map((value) => value * part.factor);
  }

  function labelOf(slot) {
    const chosen = Object.values(slot.parameters).map(({ axis, index }) => axis.label + " " + axis.values[index]);
    return slot.name + (chosen.length ? " (" + chosen.join(", ") + ")" : "");
  }

  const activeSlots = () => slots.filter((slot) => slot.name);
  const tagged = (slot, rows) => rows.map((row) => ({ ...row, slot: slot.number + 1, loss: labelOf(slot) }));

  // The map's vertical axis for a slot: the first context value that affects its loss, else a numeric hyperparameter.
  function mapAxis(slot) {
    const { axes } = tables.losses[slot.name].gradient;
    return axes.find((name) => contexts[name]) || axes.find((name) => typeof selectionOf(slot, name).axis.values[0] === "number");
  }

  function data() {
    const all = { target: [], negatives: [], boundary: [], gradient: [], map: [] };
    for (const slot of activeSlots()) {
      const table = tables.losses[slot.name], degrees = table.gradient.degrees;
      const overAngles = (part) => row(slot, part).map((value, at) => ({ angle: degrees[at], value }));
      all.target.push(...tagged(slot, curve(slot, table.target)));
      all.negatives.push(...tagged(slot, curve(slot, table.negatives)));
      all.boundary.push(...tagged(slot, overAngles(table.boundary)));
      all.gradient.push(...tagged(slot, overAngles(table.gradient)));
    }
    const [first] = activeSlots();
    if (first) {
      const part = tables.losses[first.name].gradient, name = mapAxis(first);
      const steps = name ? selectionOf(first, name).axis.values : [""];
      document.getElementById("lab-map-axis").textContent = name ? selectionOf(first, name).axis.label : "nothing else";
      steps.forEach((step, index) => {
        const overrides = name ? { [name]: index } : {};
        row(first, part, overrides).forEach((value, at) => {
          all.map.push({ angle: part.degrees[at], value, step: String(step), order: index, what: name ? selectionOf(first, name).axis.label : "" });
        });
      });
    }
    return all;
  }

  function slider(axis, index, onChange, id) {
    const label = document.createElement("label");
    const output = document.createElement("output");
    label.append(axis.label, output);
    const show = (at) => { output.textContent = String(axis.values[at]); };
    show(index);
    if (axis.values.every((value) => typeof value === "number")) {
      const input = document.createElement("input");
      Object.assign(input, { type: "range", id, min: 0, max: axis.values.length - 1, step: 1, value: index });
      input.setAttribute("aria-valuetext", String(axis.values[index]));
      input.addEventListener("input", () => {
        show(Number(input.value));
        input.setAttribute("aria-valuetext", String(axis.values[input.value]));
        onChange(Number(input.value));
      });
      output.htmlFor = id;
      label.append(input);
    } else {
      output.remove();
      const select = document.createElement("select");
      select.id = id;
      axis.values.forEach((value, at) => select.append(new Option(String(value), at, at === index, at === index)));
      select.addEventListener("change", () => onChange(Number(select.value)));
      label.append(select);
    }
    return label;
  }

  function choose(slot, name) {
    slot.name = name;
    slot.parameters = {};
    const container = slot.element.querySelector('[data-role="parameters"]');
    container.replaceChildren();
    slot.element.querySelector('[data-role="loss"]').value = name;
    if (!name) return;
    for (const axis of tables.losses[name].parameters) {
      slot.parameters[axis.name] = { axis, index: axis.default };
      container.append(slider(axis, axis.default, (index) => {
        slot.parameters[axis.name].index = index;
        update();
      }, "lab-" + slot.number + "-" + axis.name));
    }
  }

  // Disables the sliders that affect no chosen loss.
  function showContexts() {
    const parts = activeSlots().flatMap((slot) => ["target", "negatives", "boundary", "gradient"].flatMap((part) => tables.losses[slot.name][part].axes));
    for (const label of document.querySelectorAll("#lab-contexts label")) {
      const input = label.querySelector("input");
      input.disabled = !parts.includes(input.id.slice("lab-context-".length));
      label.classList.toggle("unused", input.disabled);
    }
  }

  let views = {};
  function update() {
    showContexts();
    const rows = data();
    for (const [name, view] of Object.entries(views)) {
      view.data("rows", rows[name]).run();
    }
  }

  const names = Object.keys(tables.losses);
  const defaults = ["arcface", "cosface", "adaface", "curricularface"].filter((name) => names.includes(name));
  const shown = [...new Set([...(tables.chosen || defaults), ...names])].slice(0, Math.min(4, tables.chosen ? tables.chosen.length : 4));
  slots.forEach((slot, number) => {
    slot.element.querySelector(".swatch").style.borderTopColor = charts.colors[number];
    slot.element.querySelector(".swatch").style.borderTopStyle = number ? "dashed" : "solid";
    slot.element.querySelector('[data-role="loss"]').addEventListener("change", (event) => {
      choose(slot, event.target.value);
      update();
    });
    choose(slot, shown[number] || "");
  });
  for (const axis of tables.contexts) {
    document.getElementById("lab-contexts").append(slider(axis, axis.default, (index) => {
      contexts[axis.name].index = index;
      update();
    }, "lab-context-" + axis.name));
  }
  const rows = data();
  const drawn = Object.entries(charts.specs).map(async ([name, spec]) => {
    views[name] = await draw("lab-" + name, { ...spec, datasets: { rows: rows[name] } });
  });
  showContexts();
  Promise.all(drawn).then(() => {
    document.getElementById("lab").dataset.ready = "true";
    // The charts' rows, for tests and for the browser's console.
    window.margraveLab = { data };
  });
})();
