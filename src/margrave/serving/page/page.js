"use strict";

const byId = (id) => document.getElementById(id);
const photos = {};
let key = sessionStorage.getItem("key") || "";
let model = null;

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") node.addEventListener("click", value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

async function callApi(method, path, form) {
  let answer;
  try {
    answer = await fetch(path, { method, body: form, headers: { Authorization: `Bearer ${key}` } });
  } catch {
    throw new Error("The service cannot be reached.");
  }
  const content = await answer.json().catch(() => ({}));
  if (answer.status === 401) dropKey();
  if (!answer.ok) throw new Error(content.error || `The service answered with status ${answer.status}.`);
  return content;
}

function showProblem(container, error) {
  container.replaceChildren(element("p", { class: "problem" }, toSentence(error.message)));
}

const toSentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
const formatProbability = (share) => share > 0.999 ? "more than 99.9 %" : share < 0.001 ? "less than 0.1 %" : formatPercent(share);
const formatPercent = (rate) => `${+(100 * rate).toPrecision(3)} %`;

// Photos, which are dropped, chosen as files, or taken by the camera.

const labels = { first: "First photo", second: "Second photo", probe: "Photo", enroll: "Photo of the person" };

function makeDropZone(container) {
  const slot = container.dataset.photo;
  const input = element("input", { type: "file", accept: "image/*", id: `file-${slot}`, tabindex: "-1", "aria-label": labels[slot] });
  const show = (file) => {
    photos[slot] = file;
    const buttons = element("div", { class: "buttons" },
      element("button", { type: "button", onclick: () => input.click() }, "Choose a file"),
      element("button", { type: "button", onclick: () => openCamera(show) }, "Camera"));
    const preview = file
      ? element("img", { src: URL.createObjectURL(file), alt: `${labels[slot]}, chosen` })
      : element("p", {}, "Drop a photo here, or");
    container.replaceChildren(element("strong", {}, labels[slot]), preview, buttons, input);
    updateButtons();
  };
  input.addEventListener("change", () => input.files[0] && show(input.files[0]));
  container.addEventListener("dragover", (event) => { event.preventDefault(); container.classList.add("over"); });
  container.addEventListener("dragleave", () => container.classList.remove("over"));
  container.addEventListener("drop", (event) => {
    event.preventDefault();
    container.classList.remove("over");
    if (event.dataTransfer.files[0]) show(event.dataTransfer.files[0]);
  });
  show(null);
  return show;
}

function updateButtons() {
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
    alert("The camera cannot be used; choose a file instead.");
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

// The API key, and the model that it gives access to.

function dropKey() {
  sessionStorage.removeItem("key");
  model = null;
  byId("access-state").textContent = "key refused";
  updateButtons();
}

async function connect() {
  const state = byId("access-state");
  if (!key) { state.textContent = "key required"; return; }
  try {
    model = await callApi("GET", "v1/model");
    sessionStorage.setItem("key", key);
    state.textContent = "key accepted";
    byId("model").textContent = `Model: ${model.source || "unnamed"}`;
    byId("far").replaceChildren(...model.operating_points.map((point) =>
      element("option", { value: point.far }, `${formatPercent(point.far)} of pairs of strangers`)));
  } catch (error) {
    model = null;
    state.textContent = error.message;
  }
  updateButtons();
}

byId("access").addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("key").value.trim();
  connect();
});

// Verify.

byId("verify-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const container = byId("verify-result");
  const form = new FormData();
  form.append("first", photos.first);
  form.append("second", photos.second);
  form.append("far", byId("far").value);
  form.append("crops", "true");
  byId("distribution").hidden = true;
  container.replaceChildren(element("p", {}, "Comparing …"));
  try {
    const answer = await callApi("POST", "v1/verify", form);
    showVerification(container, answer);
  } catch (error) {
    showProblem(container, error);
  }
});

function showVerification(container, answer) {
  const verdict = answer.same ? "Same person" : "Different people";
  const meaning = `Similarity ${answer.similarity.toFixed(3)}, threshold ${answer.threshold.toFixed(3)}: `
    + `${formatPercent(answer.far)} of pairs of strangers are accepted at this threshold`
    + (answer.measured_on ? ` (measured on ${answer.measured_on}).` : ".");
  const evidence = answer.probability === null
    ? "This model has no calibration, so no probability is given."
    : `Assuming equal odds before the comparison, the probability that both photos show the same person is ${formatProbability(answer.probability)}.`;
  container.replaceChildren(
    // page.css puts ✓ or ✗ before the verdict, so that it does not depend on color alone.
    element("p", { class: `verdict ${answer.same ? "good" : "bad"}` }, verdict),
    element("p", {}, meaning), element("p", {}, evidence),
    element("div", { class: "crops" }, ...answer.faces.map((face, index) => cropFigure(face, index ? "second face" : "first face"))));
  drawDistribution(answer);
}

function cropFigure(face, name) {
  const quality = face.quality === null ? "" : `; better quality than ${Math.round(face.quality)} % of the reference faces`;
  return element("figure", {}, element("img", { src: face.crop, alt: `The ${name}, aligned` }),
    element("figcaption", {}, `${name}${quality}`));
}

function svgElement(tag, attributes, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}

function drawDistribution(answer) {
  const figure = byId("distribution");
  figure.hidden = !model.genuine.length;
  if (figure.hidden) return;
  const svg = figure.querySelector("svg");
  const draw = (...parts) => svg.append(svgElement(...parts));
  svg.replaceChildren();
  // The bars of strangers are striped, so that they can be recognized without color.
  const pattern = svgElement("pattern", { id: "stripes", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
  pattern.append(svgElement("rect", { class: "ground", width: 6, height: 6 }), svgElement("rect", { class: "stripe", width: 2.5, height: 6 }));
  svg.append(pattern);
  const usedBins = model.genuine.map((share, bin) => share + model.impostors[bin] > 1e-4 ? bin : -1).filter((bin) => bin >= 0);
  const numBins = model.genuine.length;
  const cosine = (bin) => -1 + 2 * bin / numBins;
  const low = Math.max(-1, Math.min(cosine(usedBins[0]), answer.similarity) - 0.03);
  const high = Math.min(1, Math.max(cosine(usedBins[usedBins.length - 1] + 1), answer.similarity) + 0.03);
  const toX = (value) => 20 + 560 * (value - low) / (high - low);
  const tallest = Math.max(...model.genuine, ...model.impostors);
  for (const pairType of ["impostors", "genuine"]) {
    model[pairType].forEach((share, bin) => {
      if (share <= 0 || cosine(bin + 1) < low || cosine(bin) > high) return;
      const height = 110 * share / tallest;
      draw("rect", { class: pairType, x: toX(cosine(bin)), width: Math.max(1, toX(cosine(bin + 1)) - toX(cosine(bin)) - 0.5), y: 140 - height, height });
    });
  }
  draw("line", { class: "axis", x1: 20, x2: 580, y1: 140, y2: 140 });
  draw("line", { class: "threshold", x1: toX(answer.threshold), x2: toX(answer.threshold), y1: 25, y2: 140 });
  draw("line", { class: "score", x1: toX(answer.similarity), x2: toX(answer.similarity), y1: 25, y2: 140 });
  const isOnRight = toX(answer.similarity) > 360;
  draw("text", { x: toX(answer.similarity) + (isOnRight ? -5 : 5), y: 20, "text-anchor": isOnRight ? "end" : "start" }, `these two: ${answer.similarity.toFixed(3)}`);
  draw("text", { x: Math.max(100, Math.min(500, toX(answer.threshold))), y: 160, "text-anchor": "middle" }, `threshold ${answer.threshold.toFixed(3)}`);
  byId("distribution-caption").textContent =
    "The bars show the similarities of the pairs by which the threshold was chosen: pairs of strangers (striped red) and pairs of the same person (plain green). The solid line marks the two photos above.";
}

// Identify.

byId("identify-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const container = byId("identify-result");
  const form = new FormData();
  form.append("image", photos.probe);
  form.append("face", byId("faces").value);
  form.append("crops", "true");
  container.replaceChildren(element("p", {}, "Searching …"));
  try {
    const answers = await callApi("POST", "v1/identify", form);
    const rows = answers.map((answer) => element("tr", {},
      element("td", {}, element("img", { src: answer.face.crop, alt: "The face, aligned" })),
      element("td", {}, element("strong", {}, answer.person === null ? "No match" : answer.person)),
      element("td", {}, answer.candidates.length ? element("ul", { class: "candidates" }, ...answer.candidates.map(candidateItem)) : "the gallery is empty")));
    const [first] = answers;
    container.replaceChildren(
      element("table", {}, element("thead", {}, element("tr", {}, ...["Face", "Person", "Most similar"].map((text) => element("th", { scope: "col" }, text)))), element("tbody", {}, ...rows)),
      element("p", {}, `With ${first.people} enrolled people, at most ${formatPercent(first.fpir)} of the searches for a stranger find a match.`));
  } catch (error) {
    showProblem(container, error);
  }
});

const candidateItem = (candidate) => element("li", {},
  element("span", { class: "who" }, candidate.name), element("span", { class: "number" }, candidate.similarity.toFixed(3)));

// Gallery.

byId("name").addEventListener("input", updateButtons);

byId("enroll-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const container = byId("gallery-result");
  const form = new FormData();
  form.append("name", byId("name").value);
  form.append("images", photos.enroll);
  form.append("add", String(byId("add").checked));
  try {
    const answer = await callApi("POST", "v1/people", form);
    container.replaceChildren(element("p", {}, `${answer.person.name} is enrolled with ${answer.person.images} ${answer.person.images === 1 ? "image" : "images"}.`));
    byId("name").value = "";
    showPhoto.enroll(null);
    await listPeople();
  } catch (error) {
    showProblem(container, error);
  }
});

async function listPeople(after = "") {
  const list = byId("people");
  try {
    const answer = await callApi("GET", `v1/people?limit=50&after=${encodeURIComponent(after)}`);
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
    showProblem(byId("gallery-result"), error);
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
      const answer = await callApi("DELETE", `v1/people/${encodeURIComponent(name)}`);
      byId("gallery-result").replaceChildren(element("p", {}, `${answer.name}: ${answer.erased ? "erased" : "no longer searchable"}; ${answer.explanation}.`));
      await listPeople();
    } catch (error) {
      showProblem(byId("gallery-result"), error);
    }
    // The button that had the focus no longer exists, so move the focus.
    byId("people-title").focus();
  };
  dialog.showModal();
}

// Tabs, which are selected by mouse or by arrow keys.

const tabs = [...document.querySelectorAll("[role=tab]")];
function selectTab(tab) {
  for (const other of tabs) {
    const isSelected = other === tab;
    other.setAttribute("aria-selected", String(isSelected));
    other.tabIndex = isSelected ? 0 : -1;
    byId(other.getAttribute("aria-controls")).hidden = !isSelected;
  }
  tab.focus();
  if (tab.id === "tab-gallery" && model) listPeople();
}
for (const tab of tabs) {
  tab.addEventListener("click", () => selectTab(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) selectTab(tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length]);
  });
}

const showPhoto = {};
for (const container of document.querySelectorAll(".drop")) showPhoto[container.dataset.photo] = makeDropZone(container);
byId("key").value = key;
connect();
