// The form that asks two tiers the same, and what came of it.

import { infer } from "./api.js";
import { h, s } from "./dom.js";
import { milliseconds, number } from "./format.js";
import { difference, expand, median, prefilled } from "./tensors.js";

// No tier is called so.
const AS_ROUTED = "", NOBODY = "-";
const BARS = 24;
const DRAWN = 128;

export class Compare {
  #form;
  #answers;
  #of = null;
  #model = null;
  #image = null;

  constructor(form, answers) {
    this.#form = form;
    this.#answers = answers;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
  }

  show(model) {
    this.#model = model;
    const signature = JSON.stringify([model.name, model.version, model.takes, model.metadata?.inputs, model.tiers.map((tier) => tier.tier)]);
    if (signature === this.#of) return;
    this.#of = signature;
    this.#answers.replaceChildren();
    this.#form.replaceChildren(...this.#fields(model));
    if (model.takes === "image") this.#drawSample();
  }

  #fields(model) {
    if (!model.metadata) return [h("p", { class: "sub" }, "The model is still being imported.")];
    const taken = model.takes ? model.metadata.inputs.slice(1) : model.metadata.inputs;
    const ways = { image: this.#imageField(), text: this.#textField(), tensors: this.#tensorField(taken) };
    const offered = model.takes ? [model.takes, "tensors"] : ["tensors"];
    const show = (way) => offered.forEach((each) => (ways[each].hidden = each !== way));
    const choice = offered.length > 1 ? h("fieldset", {}, h("legend", {}, "Input"), offered.map((way) =>
      h("label", {}, h("input", { type: "radio", name: "way", value: way, checked: way === offered[0], onchange: () => show(way) }), way))) : null;
    show(offered[0]);
    const names = model.tiers.map((tier) => tier.tier);
    const smallest = model.tiers.filter((tier) => tier.state === "ready").at(-1)?.tier ?? names.at(-1);
    const tierField = (name, label, chosen, ...more) => h("div", {}, h("label", { for: name }, label), h("select", { id: name, name },
      names.map((tier) => h("option", { value: tier, selected: tier === chosen }, tier)), h("option", { value: AS_ROUTED }, "no tier named"), more));
    const times = h("div", {}, h("label", { for: "times" }, "Times each"), h("select", { id: "times", name: "times" },
      [1, 5, 20].map((count) => h("option", { value: count, selected: count === 5 }, String(count)))));
    return [h("div", { class: "fields" },
      h("div", {}, choice, offered.map((way) => ways[way])),
      h("div", {}, h("div", { class: "pair" }, tierField("first", "First tier", names[0]), tierField("second", "Second tier", smallest, h("option", { value: NOBODY }, "none, only the first"))),
        h("div", { class: "pair" }, times, h("div", {}, h("label", { "aria-hidden": "true" }, "\u00a0"), h("button", { class: "main", type: "submit", id: "send" }, "Ask")))))];
  }

  #textField() {
    return h("div", { hidden: true }, h("label", { for: "text" }, "Text"), h("textarea", { id: "text", rows: 4 }, "a gripping, funny and beautifully acted film"));
  }

  #tensorField(inputs) {
    return h("div", { hidden: true }, h("label", { for: "inputs" }, "Inputs of the request, JSON; a datum of \"random\" is filled in"),
      h("textarea", { id: "inputs", rows: 9, spellcheck: "false" }, prefilled(inputs)));
  }

  #imageField() {
    const preview = h("img", { alt: "the picture that is sent", width: 84, height: 84, id: "preview" });
    const file = h("input", { type: "file", id: "image", accept: "image/png,image/jpeg", onchange: () => file.files[0] && this.#useImage(file.files[0]) });
    return h("div", { hidden: true }, h("label", { for: "image" }, "PNG or JPEG; until you choose one, a boot drawn by this page"), h("div", { class: "image" }, preview, file));
  }

  #useImage(blob) {
    this.#image = blob;
    const preview = this.#form.querySelector("#preview");
    if (!preview) return;
    const before = preview.src;
    preview.src = URL.createObjectURL(blob);
    if (before) URL.revokeObjectURL(before);
  }

  #drawSample() {
    const canvas = h("canvas", { width: 28, height: 28 });
    const pen = canvas.getContext("2d");
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, 28, 28);
    pen.fillStyle = "#c8c8c8";
    pen.beginPath();
    for (const [x, y] of [[9, 3], [17, 3], [17, 14], [24, 17], [26, 22], [26, 25], [8, 25], [8, 12]]) pen.lineTo(x, y);
    pen.closePath();
    pen.fill();
    pen.fillStyle = "#707070";
    pen.fillRect(8, 24, 18, 2);
    pen.fillRect(9, 5, 8, 1);
    canvas.toBlob((blob) => blob && this.#useImage(blob), "image/png");
  }

  #request() {
    const way = this.#form.elements.way?.value ?? "tensors";
    if (way === "text") return { body: this.#form.querySelector("#text").value, headers: { "Content-Type": "text/plain; charset=utf-8" } };
    if (way === "image") {
      if (!this.#image) throw new Error("choose a picture first");
      return { body: this.#image, headers: { "Content-Type": this.#image.type } };
    }
    return { body: JSON.stringify({ inputs: expand(this.#form.querySelector("#inputs").value) }), headers: { "Content-Type": "application/json" } };
  }

  async #send() {
    const [model, of] = [this.#model, this.#of];
    const button = this.#form.querySelector("#send");
    const asked = [this.#form.elements.first.value, this.#form.elements.second.value].filter((tier) => tier !== NOBODY);
    button.disabled = true;
    try {
      const request = this.#request();
      const heard = asked.map(() => []);
      const failures = asked.map(() => null);
      // In turns and one at a time, so that neither waits for the other.
      for (let turn = 0; turn < Number(this.#form.elements.times.value); turn++) {
        for (const side of asked.keys()) {
          if (failures[side]) continue;
          try {
            heard[side].push(await infer(model.name, model.version, asked[side], request));
          } catch (error) {
            failures[side] = error.message;
          }
        }
      }
      // Another model may have been chosen meanwhile.
      if (of === this.#of) this.#answers.replaceChildren(...draw(model, asked, heard, failures));
    } catch (error) {
      this.#answers.replaceChildren(h("p", { class: "reason state failed" }, error.message));
    } finally {
      button.disabled = false;
    }
  }
}

function draw(model, asked, heard, failures) {
  const indexOf = (name) => model.tiers.findIndex((tier) => tier.tier === name);
  const colours = heard.map((answers, side) => Math.max(0, indexOf(answers.at(-1)?.tier ?? asked[side])) % 8);
  const cards = heard.map((answers, side) => {
    const last = answers.at(-1);
    const head = h("h3", {}, side ? "Second: " : "First: ", asked[side] || "no tier named");
    if (failures[side]) return h("div", { class: "answer", "data-side": side }, head, h("p", { class: "state failed" }, failures[side]));
    const took = answers.map((answer) => answer.seconds);
    return h("div", { class: `answer t${colours[side]}`, "data-side": side }, head,
      h("p", { class: "big", "data-figure": "latency" }, milliseconds(median(took))),
      h("p", { class: "sub" }, took.length > 1 ? `median of ${took.length}, from ${milliseconds(Math.min(...took))} to ${milliseconds(Math.max(...took))}, as this browser sees it` : "as this browser sees it"),
      h("p", {}, "served by ", h("b", { "data-figure": "served" }, last.tier), ` (${last.reason})`));
  });
  const found = [h("div", { class: "answer-grid" }, cards)];
  if (failures.some(Boolean)) return found;
  const last = heard.map((answers) => answers.at(-1));
  for (const { name } of last[0].outputs) {
    const outputs = last.map((answer) => answer.outputs.find((each) => each.name === name));
    if (outputs.every(Boolean)) found.push(outputSection(outputs, colours, last.map((answer) => answer.tier)));
  }
  return found;
}

function outputSection(outputs, colours, names) {
  const [{ name, datatype, shape }] = outputs;
  const data = outputs.map((output) => output.data.flat(Infinity));
  const drawable = data.every((values) => values.length > 1 && values.length === data[0].length && values.every((value) => typeof value === "number"));
  const asBars = drawable && data[0].length <= BARS;
  return h("section", { class: "output" },
    h("h3", {}, name, " ", h("code", {}, `${datatype} [${shape.join(", ")}]`)),
    outputs.length > 1 ? h("dl", { class: "facts" }, facts(...outputs)) : null,
    drawable ? (asBars ? bars(data, colours) : curves(data, colours, names)) : null,
    asBars ? null : data.map((values, side) =>
      h("p", { class: "values" }, `${names[side]}: ${values.slice(0, 8).map(number).join(", ")}${values.length > 8 ? ", …" : ""}`)));
}

function facts(one, other) {
  const apart = difference(one, other);
  const fact = (name, value, figure) => h("div", {}, h("dt", {}, name), h("dd", { "data-figure": figure }, value));
  if (apart?.largest === undefined) return [fact("same", apart === null ? "shapes differ" : apart.identical ? "yes" : "no", "same")];
  return [
    fact("max abs difference", number(apart.largest), "largest"), fact("mean abs difference", number(apart.mean), "mean"),
    apart.cosine === null ? null : fact("cosine", apart.cosine.toFixed(5), "cosine"),
    apart.rows ? fact("same argmax", apart.rows === 1 ? (apart.same ? "yes" : "no") : `${apart.same} of ${apart.rows}`, "argmax") : null,
  ];
}

function bars(data, colours) {
  const [low, high] = [Math.min(0, ...data.flat()), Math.max(0, ...data.flat())];
  const span = high - low || 1;
  const bar = (value, side) => h("div", { class: `one t${colours[side]} ${side ? "second" : ""}` },
    h("i", { "--part": Math.abs(value) / span, "--from": (Math.min(value, 0) - low) / span }), number(value));
  return h("div", { class: "bars" }, data[0].flatMap((_, index) => [h("span", {}, String(index)), h("div", { class: "two" }, data.map((values, side) => bar(values[index], side)))]));
}

function curves(data, colours, names) {
  const drawn = data.map((values) => values.slice(0, DRAWN));
  const [low, high] = [Math.min(...drawn.flat()), Math.max(...drawn.flat())];
  const path = (values) => values.map((value, index) => `${index ? "L" : "M"}${((index / (values.length - 1)) * 1000).toFixed(1)} ${(96 - ((value - low) / (high - low || 1)) * 92).toFixed(1)}`).join("");
  const line = (values, side) => s("path", { class: `rate t${colours[side]} ${side ? "second" : ""}`, d: path(values), "vector-effect": "non-scaling-stroke" });
  return h("div", { class: "plot" }, s("svg", { viewBox: "0 0 1000 100", height: 110, preserveAspectRatio: "none", role: "img", "aria-label": `The first ${drawn[0].length} values of ${names.join(" and ")}` }, drawn.map(line)));
}
