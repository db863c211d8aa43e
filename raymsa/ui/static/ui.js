// Newer pieces of the page in place of older ones, as the server sends them; tables that sort and filter.
// Everything can be read without this file.

const COLLATOR = new Intl.Collator("en", { numeric: true });
const DELAY_MS = 400; // between two news, at least: a page that is redrawn all the time cannot be read
const sorted = new Map(); // table id -> {column, descending}: also for tables that come anew
const whole = new Set(); // ids of long tables of which all rows are asked for

const element = (id) => document.getElementById(id);

function speak(words) {
  element("spoken").textContent = words;
}

// Sorting

function cellKey(row, column, numbers) {
  const cell = row.cells[column];
  if (!numbers) return cell ? cell.textContent.trim() : "";
  const given = cell ? cell.dataset.v : "";
  return given === undefined || given === "" ? NaN : Number(given);
}

function compare(a, b, numbers, descending) {
  if (numbers) {
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b); // what is missing comes last
    return descending ? b - a : a - b;
  }
  return descending ? COLLATOR.compare(b, a) : COLLATOR.compare(a, b);
}

function order(table) {
  const wanted = sorted.get(table.id);
  if (!wanted) return;
  const heading = table.tHead.rows[0].cells[wanted.column];
  if (!heading) return; // a table with fewer columns came
  const numbers = heading.dataset.sort === "number";
  for (const body of table.tBodies) {
    const keyed = [...body.rows].map((row) => [cellKey(row, wanted.column, numbers), row]);
    keyed.sort(([a], [b]) => compare(a, b, numbers, wanted.descending));
    if (keyed.some(([, row], at) => body.rows[at] !== row)) {
      keepingFocus(() => body.replaceChildren(...keyed.map(([, row]) => row)));
    }
    limit(body);
  }
}

// Of a long table the first rows are shown, until all are asked for.
function limit(body) {
  const button = document.querySelector(`[data-all="${CSS.escape(body.id)}"]`);
  if (!button) return;
  const rows = [...body.rows].filter((row) => !row.hidden);
  const most = whole.has(body.id) ? rows.length : Number(body.dataset.most);
  rows.forEach((row, at) => row.classList.toggle("more", at >= most));
  button.hidden = rows.length <= most;
  button.textContent = `Show ${rows.length - most} more rows`;
}

function showAll(id) {
  const body = element(id);
  whole.add(id);
  limit(body);
  body.rows[0]?.querySelector("a, input")?.focus();
}

function sortBy(table, column) {
  const before = sorted.get(table.id);
  const descending = before !== undefined && before.column === column && !before.descending;
  sorted.set(table.id, { column, descending });
  mark(table);
  order(table);
  const words = table.tHead.rows[0].cells[column].textContent;
  speak(`sorted by ${words}, ${descending ? "descending" : "ascending"}`);
}

function mark(table) {
  const wanted = sorted.get(table.id);
  [...table.tHead.rows[0].cells].forEach((heading, at) => {
    if (wanted && wanted.column === at) heading.ariaSort = wanted.descending ? "descending" : "ascending";
    else heading.removeAttribute("aria-sort");
  });
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((heading, at) => {
    if (!heading.dataset.sort || heading.querySelector("button")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.id = `${table.id}-by-${at}`;
    button.textContent = heading.textContent;
    button.addEventListener("click", () => sortBy(table, at));
    heading.replaceChildren(button);
  });
  mark(table);
  order(table);
}

// Filters

function filter(input) {
  const words = input.value.trim().toLowerCase();
  const within = element(input.dataset.filter); // a table's rows, or a part with several tables
  for (const body of within?.tagName === "TBODY" ? [within] : (within?.querySelectorAll("tbody") ?? [])) {
    for (const row of body.rows) row.hidden = words !== "" && !row.textContent.toLowerCase().includes(words);
    limit(body);
  }
}

function filterAll() {
  document.querySelectorAll("[data-filter]").forEach(filter);
}

// News

// Moving an element takes the focus from it.
function keepingFocus(change) {
  const active = document.activeElement;
  change();
  if (active?.isConnected && active !== document.activeElement) active.focus({ preventScroll: true });
}

// Only what differs is changed: focus, boxes that are checked, what is selected and scrolled stay as they are.
function morph(now, next) {
  const other = now.nodeName !== next.nodeName || (now.tagName === "INPUT" && now.value !== next.value);
  if (other) now.replaceWith(next);
  else if (now.nodeType !== Node.ELEMENT_NODE) now.data !== next.data && (now.data = next.data);
  else if (now.tagName !== "THEAD" || now.textContent !== next.textContent) { // headings have got buttons
    [...now.attributes].forEach(({ name }) => next.hasAttribute(name) || now.removeAttribute(name));
    [...next.attributes].forEach(({ name, value }) => now.getAttribute(name) === value || now.setAttribute(name, value));
    morphChildren(now, next);
  }
}

function morphChildren(now, next) {
  const old = [...now.childNodes];
  const wanted = [...next.childNodes];
  wanted.forEach((node, at) => (at < old.length ? morph(old[at], node) : now.append(node)));
  old.slice(wanted.length).forEach((node) => node.remove());
}

function replace(target, html) {
  const made = document.createElement("template");
  made.innerHTML = html; // made by the server from templates that escape
  const log = target.querySelector("pre.log");
  const atEnd = !log || log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
  morphChildren(target, made.content);
  target.querySelectorAll("table[data-sortable]").forEach(makeSortable);
  target.querySelectorAll("tbody[data-most]").forEach(limit);
  if (atEnd) target.querySelectorAll("pre.log").forEach(toEnd);
}

function toEnd(log) {
  log.scrollTop = log.scrollHeight;
}

function arrange(table, ids) {
  const body = element(table);
  const rows = ids.map((id) => {
    const row = element(id) ?? document.createElement("tr");
    row.id = id;
    return row;
  });
  keepingFocus(() => body.replaceChildren(...rows));
  limit(body);
  const empty = document.querySelector(`[data-empty="${CSS.escape(table)}"]`);
  if (empty) empty.hidden = ids.length > 0;
}

function take(news) {
  for (const [id, html] of Object.entries(news.parts ?? {})) {
    const part = element(id);
    if (part) replace(part, html);
  }
  const bodies = new Set(Object.keys(news.order ?? {}));
  for (const [table, ids] of Object.entries(news.order ?? {})) arrange(table, ids);
  for (const [id, html] of Object.entries(news.rows ?? {})) {
    const row = element(id);
    if (!row) continue;
    replace(row, html);
    bodies.add(row.parentElement.id);
  }
  for (const id of bodies) {
    const table = element(id)?.closest("table");
    if (table) order(table);
  }
  filterAll();
}

// A connection while the page is seen: a browser has but six for all its pages of one server.

let source = null;
let waiting = null;

function hear(message) {
  const news = JSON.parse(message.data);
  if (news.ready && !document.body.dataset.version) {
    location.reload(); // this page was made without the store
    return;
  }
  document.body.dataset.version = message.lastEventId;
  waiting = waiting ?? { parts: {}, rows: {}, order: {}, timer: setTimeout(show, DELAY_MS) };
  for (const kind of ["parts", "rows", "order"]) Object.assign(waiting[kind], news[kind]);
}

function show() {
  const news = waiting;
  waiting = null;
  take(news);
}

function listen() {
  const { live: address, version } = document.body.dataset;
  if (!address || document.hidden || source) return;
  source = new EventSource(`${address}${address.includes("?") ? "&" : "?"}since=${encodeURIComponent(version ?? "")}`);
  source.onopen = () => (element("gone").hidden = true);
  source.onmessage = hear;
  source.onerror = () => {
    element("gone").hidden = false;
    if (source?.readyState === EventSource.CLOSED) {
      source = null;
      setTimeout(listen, 5000);
    }
  };
}

function rest() {
  source?.close();
  source = null;
}

document.documentElement.classList.add("scripted");
document.querySelectorAll("table[data-sortable]").forEach(makeSortable);
document.querySelectorAll("tbody[data-most]").forEach(limit);
document.addEventListener("click", ({ target }) => target.dataset?.all && showAll(target.dataset.all));
document.querySelectorAll("[data-filter]").forEach((input) => {
  input.addEventListener("input", () => filter(input));
  input.addEventListener("keydown", (event) => event.key === "Enter" && event.preventDefault());
});
document.querySelectorAll("pre.log").forEach(toEnd);
document.addEventListener("visibilitychange", () => (document.hidden ? rest() : listen()));
addEventListener("pagehide", rest);
addEventListener("pageshow", listen);
listen();
