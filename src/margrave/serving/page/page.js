"use strict";

const byId = (id) => document.getElementById(id);
const photos = {};
let key = sessionStorage.getItem("key") || "";
let model = null;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") made.addEventListener("click", value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

async function call(method, path, form) {
  let answer;
  try {
    answer = await fetch(path, { method, body: form, headers: { Authorization: `Bearer ${key}` } });
  } catch {
    throw new Error("The service cannot be reached.");
  }
  const content = await answer.json().catch(() => ({}));
  if (answer.status === 401) dropKey();
  if (!answer.ok) throw new Error(content.error || `The service answers ${answer.status}.`);
  return content;
}

function problem(place, error) {
  place.replaceChildren(element("p", { class: "problem" }, sentence(error.message)));
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
const chance = (share) => share > 0.999 ? "more than 99.9 %" : share < 0.001 ? "less than 0.1 %" : percent(share);
const percent = (rate) => `${+(100 * rate).toPrecision(3)} %`;

// Photos: dropped, chosen, or taken by the camera.

const labels = { first: "First photo", second: "Second photo", probe: "Photo", enroll: "Photo of the person" };

function makeDrop(place) {
  const slot = place.dataset.photo;
  const input = element("input", { type: "file", accept: "image/*", id: `file-${slot}`, tabindex: "-1", "aria-label": labels[slot] });
  const show = (file) => {
    photos[slot] = file;
    const buttons = element("div", { class: "buttons" },
      element("button", { type: "button", onclick: () => input.click() }, "Choose a file"),
      element("button", { type: "button", onclick: () => openCamera(show) }, "Camera"));
    const preview = file
      ? element("img", { src: URL.createObjectURL(file), alt: `${labels[slot]}, chosen` })
      : element("p", {}, "Drop it here, or");
    place.replaceChildren(element("strong", {}, labels[slot]), preview, buttons, input);
    update();
  };
  input.addEventListener("change", () => input.files[0] && show(input.files[0]));
  place.addEventListener("dragover", (event) => { event.preventDefault(); place.classList.add("over"); });
  place.addEventListener("dragleave", () => place.classList.remove("over"));
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    place.classList.remove("over");
    if (event.dataTransfer.files[0]) show(event.dataTransfer.files[0]);
  });
  show(null);
  return show;
}

function update() {
  byId("verify-go").disabled = !(photos.first && photos.second && model);
  byId("identify-go").disabled = !(photos.probe && model);
  byId("enroll-go").disabled = !(photos.enroll && model && byId("name").value.trim());
}

async function openCamera(show) {
  const dialog = byId("camera");
  const video = dialog.querySelector("video");
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "user" } });
  } catch {
    alert("No camera can be used here; choose a file instead.");
    return;
  }
  video.srcObject = stream;
  const stop = () => { stream.getTracks().forEach((track) => track.stop()); dialog.close(); };
  byId("cancel").onclick = stop;
  dialog.oncancel = stop;
  byId("take").onclick = () => {
    const canvas = element("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => { show(new File([blob], "camera.png")); stop(); }, "image/png");
  };
  dialog.showModal();
}

// The key and what it opens.

function dropKey() {
  sessionStorage.removeItem("key");
  model = null;
  byId("access-state").textContent = "refused";
  update();
}

async function connect() {
  const state = byId("access-state");
  if (!key) { state.textContent = "needed"; return; }
  try {
    model = await call("GET", "v1/model");
    sessionStorage.setItem("key", key);
    state.textContent = "accepted";
    byId("model").textContent = `Model: ${model.source || "without a name"}`;
    byId("far").replaceChildren(...model.operating_points.map((point) =>
      element("option", { value: point.far }, `${percent(point.far)} of strangers`)));
  } catch (error) {
    model = null;
    state.textContent = error.message;
  }
  update();
}

byId("access").addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("key").value.trim();
  connect();
});

// Verify.

byId("verify-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const place = byId("verify-result");
  const form = new FormData();
  form.append("first", photos.first);
  form.append("second", photos.second);
  form.append("far", byId("far").value);
  form.append("crops", "true");
  byId("distribution").hidden = true;
  place.replaceChildren(element("p", {}, "Comparing …"));
  try {
    const answer = await call("POST", "v1/verify", form);
    showVerification(place, answer);
  } catch (error) {
    problem(place, error);
  }
});

function showVerification(place, answer) {
  const verdict = answer.same ? "Same person" : "Different people";
  const meaning = `Similarity ${answer.similarity.toFixed(3)}, threshold ${answer.threshold.toFixed(3)}: `
    + `${percent(answer.far)} of pairs of strangers are accepted at this threshold`
    + (answer.measured_on ? ` (measured on ${answer.measured_on}).` : ".");
  const evidence = answer.probability === null
    ? "This model has no calibration, so no probability is given."
    : `If both were equally likely beforehand, the probability of the same person is ${chance(answer.probability)}.`;
  place.replaceChildren(
    // The sign before it, and not the color alone, tells the two apart: page.css.
    element("p", { class: `verdict ${answer.same ? "good" : "bad"}` }, verdict),
    element("p", {}, meaning), element("p", {}, evidence),
    element("div", { class: "crops" }, ...answer.faces.map((face, at) => crop(face, at ? "second face" : "first face"))));
  drawDistribution(answer);
}

function crop(face, name) {
  const quality = face.quality === null ? "" : `; quality above ${Math.round(face.quality)} %`;
  return element("figure", {}, element("img", { src: face.crop, alt: `The ${name}, aligned` }),
    element("figcaption", {}, `${name}${quality}`));
}

function svgElement(tag, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

function drawDistribution(answer) {
  const figure = byId("distribution");
  figure.hidden = !model.genuine.length;
  if (figure.hidden) return;
  const svg = figure.querySelector("svg");
  const draw = (...parts) => svg.append(svgElement(...parts));
  svg.replaceChildren();
  // Strangers are striped, so that no color is needed to see which bars are theirs.
  const pattern = svgElement("pattern", { id: "stripes", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
  pattern.append(svgElement("rect", { class: "ground", width: 6, height: 6 }), svgElement("rect", { class: "stripe", width: 2.5, height: 6 }));
  svg.append(pattern);
  const used = model.genuine.map((share, at) => share + model.impostors[at] > 1e-4 ? at : -1).filter((at) => at >= 0);
  const bins = model.genuine.length;
  const cosine = (at) => -1 + 2 * at / bins;
  const low = Math.max(-1, Math.min(cosine(used[0]), answer.similarity) - 0.03);
  const high = Math.min(1, Math.max(cosine(used[used.length - 1] + 1), answer.similarity) + 0.03);
  const across = (value) => 20 + 560 * (value - low) / (high - low);
  const tallest = Math.max(...model.genuine, ...model.impostors);
  for (const kind of ["impostors", "genuine"]) {
    model[kind].forEach((share, at) => {
      if (share <= 0 || cosine(at + 1) < low || cosine(at) > high) return;
      const height = 110 * share / tallest;
      draw("rect", { class: kind, x: across(cosine(at)), width: Math.max(1, across(cosine(at + 1)) - across(cosine(at)) - 0.5), y: 140 - height, height });
    });
  }
  draw("line", { class: "axis", x1: 20, x2: 580, y1: 140, y2: 140 });
  draw("line", { class: "threshold", x1: across(answer.threshold), x2: across(answer.threshold), y1: 25, y2: 140 });
  draw("line", { class: "score", x1: across(answer.similarity), x2: across(answer.similarity), y1: 25, y2: 140 });
  const right = across(answer.similarity) > 360;
  draw("text", { x: across(answer.similarity) + (right ? -5 : 5), y: 20, "text-anchor": right ? "end" : "start" }, `these two: ${answer.similarity.toFixed(3)}`);
  draw("text", { x: Math.max(100, Math.min(500, across(answer.threshold))), y: 160, "text-anchor": "middle" }, `threshold ${answer.threshold.toFixed(3)}`);
  byId("distribution-caption").textContent =
    "Similarities of the pairs that the threshold was chosen on: strangers (striped red) and the same person (plain green). The line is this pair.";
}

// Identify.

byId("identify-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const place = byId("identify-result");
  const form = new FormData();
  form.append("image", photos.probe);
  form.append("face", byId("faces").value);
  form.append("crops", "true");
  place.replaceChildren(element("p", {}, "Searching …"));
  try {
    const answers = await call("POST", "v1/identify", form);
    const rows = answers.map((answer) => element("tr", {},
      element("td", {}, element("img", { src: answer.face.crop, alt: "The face, aligned" })),
      element("td", {}, element("strong", {}, answer.person === null ? "Nobody here" : answer.person)),
      element("td", {}, answer.candidates.length ? element("ul", { class: "candidates" }, ...answer.candidates.map(candidate)) : "the gallery is empty")));
    const [first] = answers;
    place.replaceChildren(
      element("table", {}, element("thead", {}, element("tr", {}, ...["Face", "Person", "Most alike"].map((text) => element("th", { scope: "col" }, text)))), element("tbody", {}, ...rows)),
      element("p", {}, `Among ${first.people} people, a stranger is taken for someone in at most ${percent(first.fpir)} of searches.`));
  } catch (error) {
    problem(place, error);
  }
});

const candidate = (each) => element("li", {},
  element("span", { class: "who" }, each.name), element("span", { class: "number" }, each.similarity.toFixed(3)));

// Gallery.

byId("name").addEventListener("input", update);

byId("enroll-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const place = byId("gallery-result");
  const form = new FormData();
  form.append("name", byId("name").value);
  form.append("images", photos.enroll);
  form.append("add", String(byId("add").checked));
  try {
    const answer = await call("POST", "v1/people", form);
    place.replaceChildren(element("p", {}, `${answer.person.name} is enrolled by ${answer.person.images} ${answer.person.images === 1 ? "image" : "images"}.`));
    byId("name").value = "";
    clear.enroll(null);
    await listPeople();
  } catch (error) {
    problem(place, error);
  }
});

async function listPeople(after = "") {
  const list = byId("people");
  try {
    const answer = await call("GET", `v1/people?limit=50&after=${encodeURIComponent(after)}`);
    if (!after) list.replaceChildren();
    byId("people-title").textContent = `People (${answer.total})`;
    for (const person of answer.people) {
      list.append(element("li", {},
        element("span", { class: "who" }, person.name, element("small", {}, `${person.images} ${person.images === 1 ? "image" : "images"}, ${person.enrolled.slice(0, 10)}`)),
        element("button", { class: "danger", "aria-label": `Forget ${person.name}`, onclick: () => askToForget(person.name) }, "Forget")));
    }
    const last = answer.people.at(-1);
    byId("more").hidden = list.children.length >= answer.total || !last;
    byId("more").onclick = () => listPeople(last.name);
  } catch (error) {
    problem(byId("gallery-result"), error);
  }
}

byId("refresh").addEventListener("click", () => listPeople());

function askToForget(name) {
  const dialog = byId("confirm");
  byId("confirm-text").textContent = `${name} will be removed from the gallery; this cannot be undone.`;
  byId("confirm-no").onclick = () => dialog.close();
  byId("confirm-yes").onclick = async () => {
    dialog.close();
    try {
      const answer = await call("DELETE", `v1/people/${encodeURIComponent(name)}`);
      byId("gallery-result").replaceChildren(element("p", {}, `${answer.name}: ${answer.erased ? "erased" : "no longer searchable"}; ${answer.explanation}.`));
      await listPeople();
    } catch (error) {
      problem(byId("gallery-result"), error);
    }
    // The button that had the focus is gone.
    byId("people-title").focus();
  };
  dialog.showModal();
}

// Tabs, by mouse and by arrow keys.

const tabs = [...document.querySelectorAll("[role=tab]")];
function select(tab) {
  for (const each of tabs) {
    const chosen = each === tab;
    each.setAttribute("aria-selected", String(chosen));
    each.tabIndex = chosen ? 0 : -1;
    byId(each.getAttribute("aria-controls")).hidden = !chosen;
  }
  tab.focus();
  if (tab.id === "tab-gallery" && model) listPeople();
}
for (const tab of tabs) {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) select(tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length]);
  });
}

const clear = {};
for (const place of document.querySelectorAll(".drop")) clear[place.dataset.photo] = makeDrop(place);
byId("key").value = key;
connect();
