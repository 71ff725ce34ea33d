// Draws the sections of the report. All that comes from the run is put in by textContent, never as markup.
"use strict";

const report = JSON.parse(document.getElementById("report-data").textContent);

/** An element with a class and children; a string child becomes text. */
function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// theme

const THEMES = ["auto", "light", "dark"];
const NAMES = { auto: "automatic", light: "light", dark: "dark" };
const systemDark = window.matchMedia("(prefers-color-scheme: dark)");
let theme = "auto";

function remembered() {
  try { return localStorage.getItem("gavel-theme"); } catch { return null; } // storage may be turned off
}

function setTheme(wanted) {
  theme = THEMES.includes(wanted) ? wanted : "auto";
  const shown = theme === "auto" ? (systemDark.matches ? "dark" : "light") : theme;
  document.documentElement.dataset.theme = shown;
  document.getElementById("theme").textContent = `Theme: ${NAMES[theme]}`;
  try { localStorage.setItem("gavel-theme", theme); } catch { /* it lasts as long as the page */ }
  redraw();
}

function nextTheme() {
  setTheme(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]);
}

document.getElementById("theme").addEventListener("click", nextTheme);
systemDark.addEventListener("change", () => theme === "auto" && setTheme("auto"));

// charts

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** A specification with "@name" replaced by the theme's colour; the data are left alone. */
function colored(value, key) {
  if (key === "data") return value;
  if (typeof value === "string" && /^@[a-z]+$/.test(value)) return color(value.slice(1));
  if (Array.isArray(value)) return value.map((entry) => colored(entry));
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([name, entry]) => [name, colored(entry, name)]));
  }
  return value;
}

function config() {
  const text = color("text"), muted = color("muted"), line = color("line");
  const font = getComputedStyle(document.body).fontFamily;
  return {
    background: "transparent", font, padding: 2, view: { stroke: null },
    axis: { labelColor: muted, titleColor: muted, gridColor: line, domainColor: line, tickColor: line, gridOpacity: 0.7,
      labelFontSize: 11, titleFontSize: 11, titleFontWeight: 400, labelLimit: 140, tickCount: 5 },
    legend: { labelColor: text, titleColor: muted, labelFontSize: 11, titleFontSize: 11, titleFontWeight: 400, labelLimit: 220 },
    range: { category: color("series").split(" ") },
    bar: { color: color("accent") }, line: { color: color("accent"), strokeWidth: 2 }, point: { color: color("accent"), size: 30 }, text: { color: text, fontSize: 11 },
  };
}

const tip = document.getElementById("tip");

/** The tooltip of a chart, as text. */
function showTip(handler, event, item, value) {
  if (value === null || value === undefined || value === "") { tip.hidden = true; return; }
  tip.textContent = typeof value === "object"
    ? Object.entries(value).filter(([, entry]) => entry !== undefined && entry !== "null").map(([name, entry]) => `${name}: ${entry}`).join("\n")
    : String(value);
  tip.hidden = false;
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, window.innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 12, window.innerHeight - tip.offsetHeight - 8))}px`;
}

const drawn = new Map(); // place of a chart → its specification, once it was on the screen
const views = new Map();

async function draw(place) {
  views.get(place)?.finalize();
  try {
    const inner = element("div", ""); // the library gives it a role and a name; those of `place` stay
    place.replaceChildren(inner);
    const made = await vegaEmbed(inner, colored(drawn.get(place)), {
      ast: true, // an interpreter: nothing is compiled, so the page's policy holds
      actions: false, renderer: "svg", config: config(), tooltip: showTip, defaultStyle: false,
    });
    views.set(place, made);
  } catch (error) {
    place.textContent = "This chart could not be drawn; its table says the same.";
    console.error(error);
  }
}

function redraw() {
  for (const place of drawn.keys()) if (place.isConnected) draw(place);
}

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((found) => found.isIntersecting)) {
    watcher.unobserve(entry.target);
    drawn.set(entry.target, entry.target.spec);
    draw(entry.target);
  }
}, { rootMargin: "300px" });

// sections

function table(title, head, rows) {
  const made = element("table", "");
  if (title) made.append(element("caption", "", title));
  const names = element("tr", "", ...head.map((name) => {
    const cell = element("th", "", name);
    cell.scope = "col";
    return cell;
  }));
  const body = rows.map((row) => element("tr", "", ...row.map((value, place) => {
    const cell = element(place ? "td" : "th", "", isolated(value));
    if (!place) cell.scope = "row";
    if (String(value).startsWith("✕")) cell.className = "bad";
    else if (/^[-–−+]?\d[\d.,e+-]*( %)?$/.test(value)) cell.className = "number";
    return cell;
  })));
  made.append(element("thead", "", names), element("tbody", "", ...body));
  const frame = element("div", "table", made);
  frame.tabIndex = 0; // so that it can be scrolled by keyboard
  frame.setAttribute("role", "region");
  frame.setAttribute("aria-label", title || "Table");
  return frame;
}

/** A value of the run as text that cannot turn the direction of what stands beside it. */
function isolated(value) {
  if (value === null || value === undefined) return "–";
  return typeof value === "number" ? value.toLocaleString("en") : element("bdi", "", value);
}

function chart(found) {
  const plot = element("div", "plot");
  plot.spec = found.spec;
  plot.style.minHeight = `${found.spec.height + 6}px`; // kept free, so that nothing jumps when it is drawn
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", `${found.title}. ${found.caption}`);
  const rows = element("details", "", element("summary", "", "As a table"));
  rows.addEventListener("toggle", () => rows.open && rows.children.length === 1 && rows.append(table("", found.head, found.rows)));
  watcher.observe(plot);
  return element("figure", found.wide ? "chart wide" : "chart",
    element("h3", "", isolated(found.title)), plot, element("figcaption", "", isolated(found.caption)), rows);
}

function card(found) {
  const value = element("dd", "", isolated(found.value));
  if (found.note) value.append(element("span", "small", isolated(found.note)));
  return element("div", found.bad ? "card bad" : "card", element("dt", "", found.label), value);
}

let made_sections = 0;

function section(found, shown) {
  const made = element("section", "");
  const title = element("h2", "", isolated(found.title));
  title.id = `section-${made_sections += 1}`;
  made.id = `${title.id}-all`;
  made.setAttribute("aria-labelledby", title.id);
  made.nav = found.nav;
  made.append(title);
  if (found.lead) made.append(element("p", "lead", isolated(found.lead)));
  for (const note of found.notes) made.append(element("p", "note", isolated(note)));
  if (found.cards.length) made.append(element("dl", "cards", ...found.cards.map(card)));
  const beside = found.charts.length ? found.tables.filter((rows) => rows.head.length < 4) : []; // narrow ones
  if (found.charts.length) {
    made.append(element("div", "charts", ...found.charts.slice(0, shown).map(chart), ...beside.map((rows) => table(rows.title, rows.head, rows.rows))));
    const more = found.charts.slice(shown);
    if (more.length) {
      const fold = element("details", "more", element("summary", "", `${more.length} more charts`));
      fold.addEventListener("toggle", () => fold.open && fold.children.length === 1 && fold.append(element("div", "charts", ...more.map(chart))));
      made.append(fold);
    }
  }
  for (const rows of found.tables.filter((one) => !beside.includes(one))) made.append(table(rows.title, rows.head, rows.rows));
  return made;
}

const nav = document.getElementById("nav");

function link(title, id) {
  const made = element("a", "", title.length > 24 ? `${title.slice(0, 23)}…` : title);
  made.href = `#${id}`;
  return element("li", "", made);
}

function showDetails(number) {
  const details = document.getElementById("details");
  for (const place of details.querySelectorAll(".plot")) {
    watcher.unobserve(place);
    views.get(place)?.finalize();
    views.delete(place);
    drawn.delete(place);
  }
  const scope = report.scopes[number];
  details.replaceChildren(...(scope ? scope.sections.map((found) => section(found, 9)) : []));
  fillNav();
}

function fillNav() {
  const sections = [...document.querySelectorAll("#overall > section, #details > section, #pairs")];
  nav.replaceChildren(...sections.filter((found) => !found.hidden).map((found) => link(found.nav ?? "Pairs", found.id)));
}

document.getElementById("overall").append(...report.overall.map((found) => section(found, 12)));
document.getElementById("foot").textContent = report.foot;
const scope = document.getElementById("scope");
report.scopes.forEach((found, number) => scope.append(new Option(found.label, String(number))));
document.getElementById("scope-bar").hidden = report.scopes.length < 2;
scope.value = String(report.first);
scope.addEventListener("change", () => showDetails(Number(scope.value)));
showDetails(report.first);
setTheme(remembered());
