// The browser of pairs: filters, search, side by side with differences marked.
"use strict";

const pairs = JSON.parse(document.getElementById("pairs-data").textContent);
const list = document.getElementById("list"), detail = document.getElementById("detail");
const field = Object.fromEntries(["search", "by-round", "by-doubt", "by-length", "order"].map((id) => [id, document.getElementById(id)]));
let found = [], current = 0, differences = true;

// text that nobody may trust

// controls, marks that turn the direction, invisible signs, halves of a surrogate pair: shown by their numbers
const SIGNS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]|[\u{e0000}-\u{e007f}]/gu;

/** Text as nodes, in which nothing is hidden. */
function visible(text) {
  const nodes = [];
  let end = 0;
  for (const sign of text.matchAll(SIGNS)) {
    if (sign.index > end) nodes.push(text.slice(end, sign.index));
    const name = `U+${sign[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
    nodes.push(element("span", "sign", name));
    end = sign.index + sign[0].length;
  }
  if (end < text.length) nodes.push(text.slice(end));
  return nodes;
}

/** text: a string, or [what is shown of it, characters in all where that is not everything]. */
function block(tag, className, text) {
  if (Array.isArray(text)) {
    const [shown, cut] = text;
    const made = block(tag, className, shown);
    if (cut) made.append(cutNote(cut));
    return made;
  }
  const made = element(tag, className, ...visible(text));
  made.dir = "auto";
  return made;
}

function cutNote(chars) {
  return element("span", "cut", `… cut here, ${chars.toLocaleString("en")} characters in all`);
}

// differences by words

const WORDS = /[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[\p{L}\p{N}_]+|\s+|[^\p{L}\p{N}_\s]/gu;
const MOST_WORDS = 1500; // the table of the comparison has the square of it

/** Which words of each text are not in the longest common sequence; null where the texts are too long. */
function compared(one, other) {
  const a = one.match(WORDS) ?? [], b = other.match(WORDS) ?? [];
  if (a.length > MOST_WORDS || b.length > MOST_WORDS) return null;
  const wide = b.length + 1, table = new Uint16Array((a.length + 1) * wide);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      table[i * wide + j] = a[i] === b[j]
        ? table[(i + 1) * wide + j + 1] + 1
        : Math.max(table[(i + 1) * wide + j], table[i * wide + j + 1]);
    }
  }
  const own = [a.map((word) => ({ word, own: true })), b.map((word) => ({ word, own: true }))];
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) { own[0][i].own = own[1][j].own = false; i += 1; j += 1; }
    else if (table[(i + 1) * wide + j] >= table[i * wide + j + 1]) i += 1;
    else j += 1;
  }
  return own;
}

/** A text whose own words are marked; neighbours share a mark. */
function marked(words) {
  const made = element("div", "text");
  made.dir = "auto";
  for (let i = 0; i < words.length;) {
    let end = i;
    while (end < words.length && words[end].own === words[i].own) end += 1;
    const nodes = visible(words.slice(i, end).map((entry) => entry.word).join(""));
    made.append(...(words[i].own ? [element("mark", "", ...nodes)] : nodes));
    i = end;
  }
  return made;
}

// one pair

function number(value) {
  if (value === null || value === undefined) return "–";
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}

const TITLES = { pair: ["Chosen", "Rejected"], "best and worst": ["Best", "Worst"], "two answers": ["One answer", "Another"] };

function side(pair, which, title, words) {
  const one = pair[which];
  const facts = [
    one.score === null ? null : `score ${number(one.score)}`, `${one.chars.toLocaleString("en")} characters`,
    one.tokens === null ? null : `${one.tokens.toLocaleString("en")} tokens`, one.finish === "length" ? "cut off at the limit" : null,
  ].filter(Boolean);
  const text = words ? marked(words) : block("div", "text", one.text[0]);
  if (!one.text[0]) text.append(element("em", "", "(empty)"));
  if (one.text[1]) text.append(cutNote(one.text[1]));
  const made = element("div", `side ${which}`, element("h3", "", title), element("p", "facts", facts.join(" · ")), text);
  if (one.thinking) made.append(element("details", "", element("summary", "", "Thinking"), block("div", "text", one.thinking)));
  made.append(block("p", "ids", one.id));
  return made;
}

function judgments(pair) {
  if (!pair.said.length) return null;
  const rows = pair.said.map((said) => {
    const reply = element("td", "");
    if (said.raw === null) reply.append("–");
    else {
      const fold = element("details", "", element("summary", "", "raw reply"), block("pre", "raw text", said.raw));
      if (said.thinking) fold.append(element("p", "facts", "Thinking"), block("pre", "raw text", said.thinking));
      fold.open = pair.said.length < 5;
      reply.append(fold);
    }
    return element("tr", "", ...[said.judging, said.aspect, said.shown, said.answer].map((text) => block("td", "", text)), reply);
  });
  const head = element("tr", "", ...["pass", "aspect", "shown", "answer", "reply"].map((name) => element("th", "", name)));
  for (const cell of head.children) cell.scope = "col";
  const frame = element("div", "table", element("table", "", element("caption", "", "What the judge said"), element("thead", "", head), element("tbody", "", ...rows)));
  frame.tabIndex = 0;
  frame.setAttribute("role", "region");
  frame.setAttribute("aria-label", "What the judge said");
  return frame;
}

function button(text, action, disabled) {
  const made = element("button", "", text);
  made.type = "button";
  made.disabled = disabled;
  made.addEventListener("click", action);
  return made;
}

function show() {
  if (!found.length) {
    detail.replaceChildren(element("p", "", "No pair is left by these filters."));
    return;
  }
  const pair = found[current], titles = TITLES[pair.kind] ?? TITLES.pair;
  const words = differences ? compared(pair.chosen.text[0], pair.rejected.text[0]) : null;
  const head = element("div", "head",
    element("p", "where", `${current + 1} of ${found.length} · `, element("bdi", "", pair.label)),
    element("div", "go", button("← Previous", () => go(-1), current === 0), button("Next →", () => go(1), current === found.length - 1)));
  const badges = element("div", "badges", pair.margin === null ? null : element("span", "badge", `margin ${number(pair.margin)}`),
    pair.p === null ? null : element("span", "badge", `p ${number(pair.p)}`), ...pair.doubts.map((doubt) => element("span", "badge doubt", doubt)));
  const prompt = element("div", "said", element("h3", "", "Prompt"), ...pair.prompt.map(([role, ...text]) =>
    element("div", "turn", element("div", "role", ...visible(role)), block("div", "text", text))));
  if (pair.earlier) prompt.append(element("span", "cut", `${pair.earlier} earlier turns are not shown`));
  const check = element("input", "");
  check.type = "checkbox";
  check.id = "differences";
  check.checked = differences;
  check.addEventListener("change", () => toggle(check.checked));
  const label = element("label", "check", check, words || !differences ? "Mark differences" : "Mark differences (these texts are too long to compare)");
  const references = pair.references.map((text) => element("details", "", element("summary", "", "Reference answer"), block("div", "text", text)));
  detail.replaceChildren(head, badges, block("p", "ids", [pair.id, pair.prompt_id].filter(Boolean).join("  prompt ")), prompt, ...references, label,
    element("div", "sides", side(pair, "chosen", titles[0], words?.[0]), side(pair, "rejected", titles[1], words?.[1])), judgments(pair) ?? "");
  mark();
}

function toggle(wanted) {
  differences = wanted;
  show();
}

// the list

function mark() {
  for (const one of list.querySelectorAll("[aria-current]")) one.removeAttribute("aria-current");
  const now = list.children[current]?.firstChild;
  if (!now) return;
  now.setAttribute("aria-current", "true");
  const above = now.offsetTop - list.scrollTop, height = list.clientHeight; // the list scrolls, the page stays
  if (above < 0 || above + now.offsetHeight > height) list.scrollTop = now.offsetTop - height / 3;
}

function go(by) {
  const next = Math.max(0, Math.min(found.length - 1, current + by));
  if (next !== current) { current = next; show(); }
}

function entry(pair, place) {
  const asked = pair.prompt.length ? pair.prompt[pair.prompt.length - 1][1] : "";
  const facts = [pair.margin === null ? null : `margin ${number(pair.margin)}`, ...pair.doubts].filter(Boolean).join(" · ");
  const made = button("", () => { current = place; show(); }, false);
  const line = element("span", "asked", ...visible(asked.slice(0, 160)));
  line.dir = "auto";
  made.append(line, element("span", "facts", facts || "\u00a0"));
  return element("li", "", made);
}

// filters

const LENGTHS = {
  longer: (a, b) => a.chars > b.chars, shorter: (a, b) => a.chars < b.chars,
  twice: (a, b) => Math.max(a.chars, b.chars) >= 2 * Math.max(1, Math.min(a.chars, b.chars)),
  cut: (a, b) => a.finish === "length" || b.finish === "length",
};

const ORDERS = {
  small: (a, b) => (a.margin ?? Infinity) - (b.margin ?? Infinity), wide: (a, b) => (b.margin ?? -Infinity) - (a.margin ?? -Infinity),
  long: (a, b) => b.chosen.chars + b.rejected.chars - a.chosen.chars - a.rejected.chars,
};

function haystack(pair) {
  pair.all ??= [
    pair.id, pair.prompt_id, pair.chosen.id, pair.rejected.id, pair.chosen.text[0], pair.rejected.text[0], ...pair.references.map(([text]) => text),
    ...pair.prompt.map(([, text]) => text), ...pair.said.flatMap((said) => [said.aspect, said.raw?.[0] ?? ""]),
  ].join("\n").toLowerCase();
  return pair.all;
}

function doubted(pair, wanted) {
  if (!wanted) return true;
  if (wanted === "any") return pair.doubts.length > 0;
  return wanted === "none" ? !pair.doubts.length : pair.doubts.includes(wanted);
}

function filter() {
  const words = field.search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const label = field["by-round"].value, doubt = field["by-doubt"].value, length = LENGTHS[field["by-length"].value];
  found = pairs.filter((pair) => (!label || pair.label === label) && doubted(pair, doubt)
    && (!length || length(pair.chosen, pair.rejected)) && words.every((word) => haystack(pair).includes(word)));
  const order = ORDERS[field.order.value];
  if (order) found.sort(order);
  current = 0;
  list.replaceChildren(...found.map(entry));
  list.scrollTop = 0;
  document.getElementById("count").textContent = `${found.length.toLocaleString("en")} of ${pairs.length.toLocaleString("en")} shown`;
  show();
}

// keyboard

const KEYS = { j: () => go(1), ArrowRight: () => go(1), k: () => go(-1), ArrowLeft: () => go(-1), d: () => toggle(!differences), t: nextTheme };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && document.activeElement === field.search) { field.search.blur(); return; }
  const busy = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName ?? "") && document.activeElement.type !== "checkbox";
  if (busy) return;
  if (event.key === "/") {
    event.preventDefault();
    document.getElementById("pairs").scrollIntoView();
    field.search.focus({ preventScroll: true });
    field.search.select();
  } else if (KEYS[event.key]) {
    event.preventDefault();
    KEYS[event.key]();
  } else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && list.contains(document.activeElement)) {
    event.preventDefault();
    go(event.key === "ArrowDown" ? 1 : -1);
    list.children[current]?.firstChild.focus({ preventScroll: true });
  }
});

let waiting = 0;
field.search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); });
for (const id of ["by-round", "by-doubt", "by-length", "order"]) field[id].addEventListener("change", filter);
const form = document.querySelector(".filters");
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter));

const labels = [...new Set(pairs.map((pair) => pair.label))];
for (const label of labels) field["by-round"].append(new Option(label, label));
field["by-round"].parentElement.hidden = labels.length < 2;
document.getElementById("pairs-lead").textContent = report.pairs_lead;
document.getElementById("pairs").hidden = !pairs.length;
fillNav();
if (pairs.length) filter();
