"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const root = document.documentElement;
  const wantsDark = window.matchMedia("(prefers-color-scheme: dark)");
  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  // Theme: the system's, or the reader's own.
  const themes = ["", "light", "dark"];
  const stored = () => { try { return localStorage.getItem("teachonce-theme") || ""; } catch { return ""; } };
  // `page.html#theme=dark&gallery=2&find=emu&sample=12` opens the page so.
  const asked = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  let chosen = asked.get("theme") || stored();
  const applyTheme = () => { root.dataset.theme = chosen || (wantsDark.matches ? "dark" : "light"); };
  const nextTheme = () => {
    chosen = themes[(themes.indexOf(chosen) + 1) % 3];
    if (chosen === (wantsDark.matches ? "dark" : "light")) chosen = themes[(themes.indexOf(chosen) + 1) % 3];
    try { localStorage.setItem("teachonce-theme", chosen); } catch { /* a page of a file may have no storage */ }
    applyTheme();
    drawCharts();
  };
  applyTheme();
  wantsDark.addEventListener("change", () => { applyTheme(); drawCharts(); });
  $("theme").addEventListener("click", nextTheme);

  // Charts.
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const config = () => {
    const ink = css("--ink"), muted = css("--muted"), grid = css("--grid");
    const colors = Array.from({ length: 10 }, (_, i) => css(`--c${i}`));
    return {
      background: "transparent",
      font: "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif",
      view: { stroke: null },
      axis: { labelColor: muted, titleColor: muted, titleFontWeight: "normal", gridColor: grid, domainColor: grid, tickColor: grid, labelFontSize: 11, titleFontSize: 11.5 },
      legend: { labelColor: ink, titleColor: muted, titleFontWeight: "normal" },
      bar: { color: css("--bar") }, line: { color: css("--bar") }, point: { color: css("--bar") },
      range: { category: colors, heatmap: [css("--low"), css("--high")], ramp: [css("--low"), css("--high")] },
    };
  };
  const drawn = new Map();
  const drawOne = async (name) => {
    const spec = data.charts[name];
    const target = $(`chart-${name}`);
    if (!spec || !target || !window.vegaEmbed) return;
    const options = { actions: false, renderer: name === "map" ? "canvas" : "svg", config: config() };
    if (name === "map") options.tooltip = (_, event, item) => showTip(event, item && item.datum && item.datum.row !== undefined ? item.datum.row : null);
    const result = await window.vegaEmbed(target, JSON.parse(JSON.stringify(spec).replace(/"css:(--\w+)"/g, (_, color) => JSON.stringify(css(color)))), options);
    drawn.get(name)?.finalize();
    drawn.set(name, result);
    if (name === "map") result.view.addEventListener("click", (_, item) => { if (item && item.datum && item.datum.row !== undefined) openDetail(item.datum.row); });
    target.dataset.drawn = "yes";
  };
  const visible = new Set();
  const drawCharts = () => visible.forEach(drawOne);
  const draw = () => {
    const names = Object.keys(data.charts);
    if (!("IntersectionObserver" in window)) { names.forEach((n) => visible.add(n)); drawCharts(); return; }
    const watch = new IntersectionObserver((entries) => entries.forEach((entry) => {
      const name = entry.target.id.slice("chart-".length);
      if (entry.isIntersecting && !visible.has(name)) { visible.add(name); watch.unobserve(entry.target); drawOne(name); }
    }), { rootMargin: "900px" });
    names.forEach((n) => { const target = $(`chart-${n}`); if (target) watch.observe(target); });
    // The rest, when there is time: whoever scrolls fast finds them drawn.
    setTimeout(async () => { for (const n of names) if (!visible.has(n)) { visible.add(n); await drawOne(n); } }, 800);
    window.addEventListener("beforeprint", () => { names.forEach((n) => visible.add(n)); drawCharts(); });
  };

  // Samples: [key, path, label, confidence, entropy, agreement, disagreement, classes, views].
  const samples = data.samples || {};
  const className = (id) => (data.classes && data.classes[id] !== undefined ? data.classes[id] : `class ${id}`);
  const number = (value, digits) => (value === null || value === undefined ? "" : value.toFixed(digits));
  if (data.sprite) {
    const style = make("style");
    style.textContent = `.tile { background-image: url(${data.sprite.url}); background-size: ${data.sprite.columns * 100}% ${data.sprite.lines * 100}%; }`;
    document.head.append(style);
  }
  const tile = (row) => {
    const place = data.sprite ? data.sprite.places[row] : undefined;
    if (place === undefined) return null;
    const element = make("div", "tile"), n = data.sprite.columns;
    const at = (i, of) => (of > 1 ? (100 * i) / (of - 1) : 0);
    element.style.backgroundPosition = `${at(place % n, n)}% ${at(Math.floor(place / n), data.sprite.lines)}%`;
    return element;
  };
  const pictures = (row, whole) => {
    const box = make("div", "views"), sample = samples[row];
    const files = (whole && data.whole && data.whole[row] ? [data.whole[row]] : null) || (data.images && data.images[row]) || [];
    files.forEach((file, view) => {
      const image = make("img"), seen = sample[8] && sample[8][view];
      image.src = `data:image/webp;base64,${file}`;
      image.alt = seen && !whole ? `view ${view}: ${className(seen[0])}, ${number(seen[1], 2)}` : "the image";
      image.title = image.alt;
      image.loading = "lazy";
      box.append(image);
    });
    if (!files.length) { const one = tile(row); if (one) box.append(one); }
    return box.childNodes.length ? box : null;
  };
  const bars = (classes) => {
    const list = make("ol", "bars");
    (classes || []).forEach(([id, p, second]) => {
      const item = make("li"), track = make("span", second ? "track second" : "track"), fill = make("i");
      fill.style.setProperty("--p", p);
      track.append(fill);
      const name = make("span", "name", className(id));
      name.title = className(id);
      item.append(name, track, make("span", "num", number(p, 2)));
      list.append(item);
    });
    return list;
  };
  const card = (row, note, whole) => {
    const sample = samples[row], element = make("article", "card");
    if (!sample) return element;
    element.tabIndex = 0;
    element.dataset.row = row;
    const shown = pictures(row, whole);
    if (shown) element.append(shown);
    const who = make("div", "who", sample[1] || sample[0]);
    if (sample[2] !== null) who.append(make("span", "chip", sample[2]));
    element.append(who, bars(sample[7]));
    if (note) element.append(make("p", "remark", note));
    return element;
  };
  const pair = (group) => {
    if (group.rows.length === 1) return card(group.rows[0], group.note, false);
    const element = make("div", "pair");
    group.rows.forEach((row) => element.append(card(row, "", true)));
    if (group.note) element.append(make("p", "remark", group.note));
    return element;
  };

  // Details.
  const dialog = $("detail");
  const openDetail = (row) => {
    const sample = samples[row], body = dialog.querySelector(".body");
    if (!sample) return;
    body.replaceChildren(make("h3", "", sample[1] || sample[0]));
    const box = make("div", "views");
    ((data.images && data.images[row]) || []).forEach((file, view) => {
      const figure = make("figure"), image = make("img"), seen = sample[8] && sample[8][view];
      image.src = `data:image/webp;base64,${file}`;
      image.alt = `view ${view}`;
      figure.append(image, make("figcaption", "", seen ? `${className(seen[0])}, ${number(seen[1], 3)}` : `view ${view}`));
      box.append(figure);
    });
    if (!box.childNodes.length) { const one = tile(row); if (one) { one.style.width = "132px"; box.append(one); } }
    if (box.childNodes.length) body.append(box);
    const facts = make("dl", "facts");
    const fact = (name, value) => { if (value === "" || value === null) return; const line = make("div"); line.append(make("dt", "", name), make("dd", "", value)); facts.append(line); };
    fact("label", sample[2]);
    fact("row", String(row));
    fact("key", sample[0]);
    if (sample[3] !== null) {
      fact("confidence", number(sample[3], 3));
      fact("entropy", `${number(sample[4], 3)} nats`);
      fact("views agree", `${number(100 * sample[5], 0)} %`);
      fact("views differ", `${number(sample[6], 3)} nats`);
    }
    body.append(facts, bars(sample[7]));
    if (data.command) body.append(make("code", "", `${data.command} ${sample[0]}`));
    dialog.showModal();
  };
  dialog.addEventListener("click", (event) => { if (event.target === dialog || event.target.closest(".close")) dialog.close(); });
  document.addEventListener("click", (event) => { const found = event.target.closest(".card[data-row]"); if (found) openDetail(found.dataset.row); });
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
    const found = event.target.closest && event.target.closest(".card[data-row]");
    if (found && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); openDetail(found.dataset.row); }
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "t") nextTheme();
    if (event.key === "/" && $("query")) { event.preventDefault(); $("query").focus(); }
  });

  // The map's pictures.
  const tip = $("tip");
  const showTip = (event, row) => {
    if (row === null || !samples[row]) { tip.hidden = true; return; }
    const sample = samples[row], one = tile(row);
    tip.replaceChildren();
    if (one) tip.append(one);
    tip.append(make("div", "", sample[1] || sample[0]));
    if (sample[7] && sample[7].length) tip.append(bars(sample[7].slice(0, 3)));
    tip.hidden = false;
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - 290)}px`;
    tip.style.top = `${Math.max(8, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 12))}px`;
  };

  // Galleries.
  const tabs = document.querySelector(".tabs");
  const select = (index, focus) => {
    const gallery = data.galleries[index];
    [...tabs.children].forEach((tab, i) => { tab.setAttribute("aria-selected", String(i === index)); tab.tabIndex = i === index ? 0 : -1; if (focus && i === index) tab.focus(); });
    $("gallery-words").textContent = gallery.words;
    $("gallery-cards").replaceChildren(...gallery.groups.map(pair));
  };
  if (tabs && data.galleries && data.galleries.length) {
    data.galleries.forEach((gallery, index) => {
      const tab = make("button", "", gallery.title);
      tab.type = "button";
      tab.setAttribute("role", "tab");
      tab.addEventListener("click", () => select(index, false));
      tabs.append(tab);
    });
    tabs.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const now = [...tabs.children].findIndex((tab) => tab.getAttribute("aria-selected") === "true");
      select((now + step + data.galleries.length) % data.galleries.length, true);
    });
    select(Math.min(Number(asked.get("gallery")) || 0, data.galleries.length - 1), false);
  }

  // Finding.
  const folded = (text) => (text || "").toLowerCase();
  const find = (text) => {
    const wanted = folded(text).trim(), box = $("found");
    box.hidden = !wanted;
    if (!wanted) return;
    const hits = Object.keys(samples).filter((row) => {
      const [key, path, label, , , , , classes] = samples[row];
      return row === wanted || key.startsWith(wanted) || folded(path).includes(wanted) || folded(label).includes(wanted)
        || (classes && classes.length && folded(className(classes[0][0])).includes(wanted));
    });
    $("found-words").textContent = `${hits.length.toLocaleString("en")} of the ${Object.keys(samples).length.toLocaleString("en")} samples in this page match`
      + (hits.length > 48 ? "; the first 48 are shown." : ".") + (data.all_here || !data.command ? "" : ` Any other is found by: ${data.command} KEY-OR-PATH`);
    $("found-cards").replaceChildren(...hits.slice(0, 48).map((row) => card(row, "", false)));
  };
  if ($("query")) {
    let waiting = 0;
    $("query").addEventListener("input", (event) => { clearTimeout(waiting); waiting = setTimeout(() => find(event.target.value), 120); });
    $("find").addEventListener("submit", (event) => { event.preventDefault(); find($("query").value); $("found").scrollIntoView(); });
  }

  // Tables: filter and sort.
  document.querySelectorAll(".tablebox").forEach((box) => {
    const body = box.querySelector("tbody"), filter = box.querySelector(".filter");
    if (filter) filter.addEventListener("input", () => [...body.rows].forEach((row) => { row.hidden = !folded(row.textContent).includes(folded(filter.value)); }));
    box.querySelectorAll("th button").forEach((button, column) => button.addEventListener("click", () => {
      const down = button.dataset.down !== "yes";
      box.querySelectorAll("th button").forEach((other) => delete other.dataset.down);
      if (down) button.dataset.down = "yes";
      const value = (row) => { const text = row.cells[column].textContent, parsed = parseFloat(text.replace(/,/g, "")); return Number.isNaN(parsed) ? text : parsed; };
      const sorted = [...body.rows].sort((a, b) => { const x = value(a), y = value(b); return (x > y ? 1 : x < y ? -1 : 0) * (down ? -1 : 1); });
      body.append(...sorted);
    }));
  });

  if (asked.get("find") && $("query")) { $("query").value = asked.get("find"); find(asked.get("find")); }
  if (asked.get("sample")) openDetail(asked.get("sample"));

  window.teachoncePage = { draw, find, openDetail };
})();
