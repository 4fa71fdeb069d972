// The form that asks two tiers the same, and what came of it.

import { infer } from "./api.js";
import { h, s } from "./dom.js";
import { milliseconds, number } from "./format.js";
import { difference, expand, median, prefilled } from "./tensors.js";

const AS_ROUTED = "";
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
    const tierField = (name, label, chosen) => h("div", {}, h("label", { for: name }, label), h("select", { id: name, name },
      names.map((tier) => h("option", { value: tier, selected: tier === chosen }, tier)), h("option", { value: AS_ROUTED }, "no tier named")));
    const times = h("div", {}, h("label", { for: "times" }, "Times each"), h("select", { id: "times", name: "times" },
      [1, 5, 20].map((count) => h("option", { value: count, selected: count === 5 }, String(count)))));
    return [h("div", { class: "fields" },
      h("div", {}, choice, offered.map((way) => ways[way])),
      h("div", {}, h("div", { class: "pair" }, tierField("first", "First tier", names[0]), tierField("second", "Second tier", smallest)),
        h("div", { class: "pair" }, times, h("div", {}, h("label", { "aria-hidden": "true" }, "\u00a0"), h("button", { class: "main", type: "submit", id: "send" }, "Ask both")))))];
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
    const model = this.#model;
    const button = this.#form.querySelector("#send");
    const asked = [this.#form.elements.first.value, this.#form.elements.second.value];
    button.disabled = true;
    try {
      const request = this.#request();
      const heard = [[], []];
      const failures = [null, null];
      // In turns and one at a time, so that neither waits for the other.
      for (let turn = 0; turn < Number(this.#form.elements.times.value); turn++) {
        for (const side of [0, 1]) {
          if (failures[side]) continue;
          try {
            heard[side].push(await infer(model.name, model.version, asked[side], request));
          } catch (error) {
            failures[side] = error.message;
          }
        }
      }
      this.#answers.replaceChildren(...draw(model, asked, heard, failures));
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
  const [one, other] = heard.map((answers) => answers.at(-1));
  const found = [h("div", { class: "answer-grid" }, cards)];
  if (!one || !other || failures.some(Boolean)) return found;
  for (const output of one.outputs) {
    const partner = other.outputs.find((each) => each.name === output.name);
    if (partner) found.push(outputSection(output, partner, colours, [one.tier, other.tier]));
  }
  return found;
}

function outputSection(one, other, colours, names) {
  const apart = difference(one, other);
  const fact = (name, value, figure) => h("div", {}, h("dt", {}, name), h("dd", { "data-figure": figure }, value));
  const facts = [];
  if (apart && apart.largest !== undefined) {
    facts.push(fact("max abs difference", number(apart.largest), "largest"), fact("mean abs difference", number(apart.mean), "mean"));
    if (apart.cosine !== null) facts.push(fact("cosine", apart.cosine.toFixed(5), "cosine"));
    if (apart.rows) facts.push(fact("same argmax", apart.rows === 1 ? (apart.same ? "yes" : "no") : `${apart.same} of ${apart.rows}`, "argmax"));
  } else {
    facts.push(fact("same", apart === null ? "shapes differ" : apart.identical ? "yes" : "no", "same"));
  }
  const [a, b] = [one.data.flat(Infinity), other.data.flat(Infinity)];
  const numeric = a.length > 0 && typeof a[0] === "number" && typeof b[0] === "number" && a.length === b.length;
  return h("section", { class: "output" },
    h("h3", {}, one.name, " ", h("code", {}, `${one.datatype} [${one.shape.join(", ")}]`)),
    h("dl", { class: "facts" }, facts),
    numeric && a.length > 1 ? (a.length <= BARS ? bars(a, b, colours) : curves(a, b, colours, names)) : null,
    numeric && a.length <= BARS ? null : [["", a], ["", b]].map(([, data], side) =>
      h("p", { class: "values" }, `${names[side]}: ${data.slice(0, 8).map(number).join(", ")}${data.length > 8 ? ", …" : ""}`)));
}

function bars(a, b, colours) {
  const [low, high] = [Math.min(0, ...a, ...b), Math.max(0, ...a, ...b)];
  const span = high - low || 1;
  const bar = (value, side) => h("div", { class: `one t${colours[side]} ${side ? "second" : ""}` },
    h("i", { "--part": Math.abs(value) / span, "--from": (Math.min(value, 0) - low) / span }), number(value));
  return h("div", { class: "bars" }, a.flatMap((value, index) => [h("span", {}, String(index)), h("div", { class: "two" }, bar(value, 0), bar(b[index], 1))]));
}

function curves(a, b, colours, names) {
  const [left, right] = [a.slice(0, DRAWN), b.slice(0, DRAWN)];
  const [low, high] = [Math.min(...left, ...right), Math.max(...left, ...right)];
  const path = (data) => data.map((value, index) => `${index ? "L" : "M"}${((index / (data.length - 1)) * 1000).toFixed(1)} ${(96 - ((value - low) / (high - low || 1)) * 92).toFixed(1)}`).join("");
  const line = (data, side) => s("path", { class: `rate t${colours[side]} ${side ? "second" : ""}`, d: path(data), "vector-effect": "non-scaling-stroke" });
  return h("div", { class: "plot" }, s("svg", { viewBox: "0 0 1000 100", height: 110, preserveAspectRatio: "none", role: "img", "aria-label": `The first ${left.length} values of ${names.join(" and ")}` }, line(left, 0), line(right, 1)));
}
