"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const names = { robust: "robust", non_robust: "refuted", misclassified: "wrong from the start", unknown: "unknown", radius: "radius found",
    equivalent: "equivalent", not_equivalent: "not equivalent" };
  const PAGE = 50, PRINTED = 1000;
  const body = document.querySelector("#table tbody");
  const get = (id) => document.getElementById(id);
  const fields = { verdict: get("filter-verdict"), label: get("filter-label"), radius: get("filter-radius"), text: get("filter-text") };
  const order = new Map(data.radii.map((radius, position) => [radius, position]));
  let column = 0, down = false, page = 0, rows = data.rows;

  const option = (select, value, text) => select.append(new Option(text, value));
  const present = new Set(data.rows.map((row) => row[4]));
  Object.keys(names).filter((name) => present.has(name)).forEach((name) => option(fields.verdict, name, names[name]));
  data.labels.forEach((label) => option(fields.label, label, label));
  data.radii.forEach((radius) => option(fields.radius, radius, radius));

  const key = (row) => (column === 3 ? order.get(row[3]) : column === 4 ? names[row[4]] : row[column]);
  const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

  function choose() {
    const verdict = fields.verdict.value, label = fields.label.value, radius = fields.radius.value;
    const wanted = fields.text.value.trim().toLowerCase(), number = /^\d+$/.test(wanted);
    rows = data.rows.filter((row) => {
      if ((verdict && row[4] !== verdict) || (label && String(row[1]) !== label) || (radius && row[3] !== radius)) return false;
      return number ? String(row[0]) === wanted : `${names[row[4]]} ${row[6]}`.toLowerCase().includes(wanted);
    });
    const sign = down ? -1 : 1;
    rows.sort((a, b) => sign * compare(key(a), key(b)) || a[0] - b[0] || compare(order.get(a[3]), order.get(b[3])));
    page = 0;
    draw();
  }

  function cell(row, text, name) {
    const element = row.insertCell();
    if (name) element.className = name;
    element.textContent = text;
    return element;
  }

  function draw(printed) {
    const first = printed ? 0 : page * PAGE, count = printed ? PRINTED : PAGE;
    const part = document.createDocumentFragment();
    for (const entry of rows.slice(first, first + count)) {
      const row = document.createElement("tr");
      entry.slice(0, 4).forEach((value) => cell(row, value));
      const chip = document.createElement("span");
      chip.className = `verdict ${entry[4]}`;
      chip.textContent = names[entry[4]];
      cell(row, "").append(chip);
      cell(row, entry[5].toFixed(3));
      cell(row, entry[6], "text");
      part.append(row);
    }
    body.replaceChildren(part);
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    get("page").textContent = `page ${page + 1} of ${pages}`;
    get("previous").disabled = page === 0;
    get("next").disabled = page >= pages - 1;
    get("count").textContent = rows.length === data.rows.length
      ? `${rows.length.toLocaleString("en")} answers`
      : `${rows.length.toLocaleString("en")} of ${data.rows.length.toLocaleString("en")} answers`;
  }

  document.querySelectorAll("#table th").forEach((head) => head.querySelector("button").addEventListener("click", () => {
    const chosen = Number(head.dataset.column);
    down = chosen === column ? !down : false;
    column = chosen;
    document.querySelectorAll("#table th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    choose();
  }));
  Object.values(fields).forEach((field) => field.addEventListener(field === fields.text ? "input" : "change", choose));
  get("filters").addEventListener("submit", (event) => event.preventDefault());
  get("previous").addEventListener("click", () => { page -= 1; draw(); });
  get("next").addEventListener("click", () => { page += 1; draw(); });
  get("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  addEventListener("beforeprint", () => { document.querySelectorAll("details").forEach((part) => { part.open = true; }); draw(true); });
  addEventListener("afterprint", () => draw());
  choose();
})();
